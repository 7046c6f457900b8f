#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Disks under the guest's epochs, with real daemons, QEMU and a Linux guest on ext4.

The guest keeps records in a file and rows in a SQLite database, and answers once they are flushed. Needs what
pair_real_test.py needs. Numbers in brackets are those of the faults that a test covers.
"""

import os
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "world"))
from failover import boot, complaints, disk_complaints, go_on, one_round, protect, protection  # noqa: E402
from pair_real_test import options  # noqa: E402
from world import World, wait_until  # noqa: E402

# A busy machine's silence is not what is tested here.
PATIENT = {"reprotect_min_ms": 300, "reprotect_max_ms": 1000, "heartbeat_lost": 25}


def world_of(**settings):
    return World({**protection(options()), **PATIENT, **settings})


def on_disk(**changes):
    return options(disk=True, **changes)


def write_more(client, answers=40):
    """Until so many more answers have come from each store."""
    def least():
        seen = client.ask("progress")
        return min(seen["records"], seen["database"])

    goal = least() + answers
    wait_until(f"{answers} answers from the disk", lambda: least() >= goal, 60)


def blocks_that_differ(a, b, block=4096):
    """The set of their places."""
    differing = set()
    with open(a, "rb") as one, open(b, "rb") as other:
        for begin in range(0, os.path.getsize(a), 1 << 20):
            left, right = one.read(1 << 20), other.read(1 << 20)
            if left != right:
                differing.update(begin + at for at in range(0, len(left), block)
                                 if left[at:at + block] != right[at:at + block])
    return differing


def settled(world):
    """The backup's disk is the primary's: each block was seen to be equal. Not all at the same moment, for
    the guest goes on writing, and the newest is always on its way."""
    left = blocks_that_differ(world.disk_of("a"), world.disk_of("b"))

    def equal():
        left.intersection_update(blocks_that_differ(world.disk_of("a"), world.disk_of("b")))
        return not left

    wait_until("both disks to be equal", equal, 60)


def empty_block(path, block=4096):
    """Where a block of zeros is that nobody is likely to write to soon: in the last half of the disk."""
    with open(path, "rb") as file:
        for at in range(os.path.getsize(path) * 3 // 4, os.path.getsize(path), block):
            file.seek(at)
            if not any(file.read(block)):
                return at
    raise AssertionError("the disk is full")


class Disk(unittest.TestCase):
    def test_what_was_acknowledged_is_on_the_replica(self):  # [1, 5]
        found = one_round(on_disk(), 1.5)
        self.assertEqual(found["complaints"], [])
        self.assertGreater(found["records"]["replies"], 20)
        self.assertGreater(found["database"]["replies"], 20)

    def test_power_loss_while_memory_is_dirtied(self):
        self.assertEqual(one_round(on_disk(dirty=8000), 1.0, cut_power=True)["complaints"], [])

    def test_switchovers_lose_nothing(self):
        with world_of() as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            disk = world.a.status()["disks"]["each"][0]
            self.assertEqual((disk["name"], disk["path"], disk["errors"]), ("disk0", world.disk_of("a"), 0))
            self.assertGreater(min(disk["reads"], disk["writes"], disk["flushes"]), 0)
            self.assertIn(disk["path"], world.a.must("status", "vm1"))
            begin = time.monotonic()
            for source, target in ((world.a, world.b), (world.b, world.a), (world.a, world.b)):
                source.must("switchover", "vm1")
                target.must("wait", "vm1", "--state", "protected", "--timeout", "60s")
                write_more(client)
            found = client.ask(f"finish {begin} {begin}")
            self.assertEqual(complaints(found), [])
            world.b.must("unprotect", "vm1")
            self.assertEqual(disk_complaints(world, client, world.b), [])

    def test_the_host_that_comes_back_gets_the_same_disk(self):  # [38]
        with world_of() as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            begin, end = world.a.kill()
            self.assertTrue(go_on(client, end))
            write_more(client)
            world.a.start()
            world.b.must("wait", "vm1", "--state", "protected", "--timeout", "60s")
            write_more(client)
            found = client.ask(f"finish {begin} {end}")
            self.assertEqual(complaints(found), [])

            settled(world)

    def test_a_resync_copies_what_differs(self):  # [38]
        with world_of() as world:
            client = boot(world, on_disk())
            protect(world)
            self.assertFalse(world.a.status()["disks"]["sync"]["by_map"])
            write_more(client)
            _, end = world.a.kill()
            self.assertTrue(go_on(client, end))
            write_more(client, 100)
            # Who asks for nothing has nothing written; the guest's own system comes to rest soon.
            client.process.send_signal(signal.SIGSTOP)
            try:
                wait_until("the guest's disk to be at rest",
                           lambda: time.time() - os.stat(world.disk_of("b")).st_mtime > 6, 90)
                differed = 4096 * len(blocks_that_differ(world.disk_of("a"), world.disk_of("b")))
                world.a.start()
                world.b.must("wait", "vm1", "--state", "protected", "--timeout", "60s")
                sync = world.b.status()["disks"]["sync"]
            finally:
                client.process.send_signal(signal.SIGCONT)
            self.assertTrue(sync["by_map"], sync)
            self.assertGreater(differed, 0)
            self.assertLessEqual(sync["changed_bytes"], 1.2 * differed, sync)
            print(f"resync: {differed} bytes differed, {sync['changed_bytes']} copied, "
                  f"{sync['total_bytes']} looked at", file=sys.stderr)

            self.assertIn("no difference", world.b.must("resync", "vm1", "--verify"))
            place = empty_block(world.disk_of("a"))
            with open(world.disk_of("a"), "r+b") as file:
                file.seek(place)
                file.write(b"x")
            said = world.b.cli("resync", "vm1", "--verify")
            self.assertEqual(said.returncode, 1, said.stdout)
            self.assertIn(f"byte {place}", said.stdout)
            world.b.must("resync", "vm1", timeout=60)
            world.b.must("wait", "vm1", "--state", "protected", "--timeout", "60s")
            sync = world.b.status()["disks"]["sync"]
            self.assertFalse(sync["by_map"], sync)
            self.assertIn("no difference", world.b.must("resync", "vm1", "--verify"))

    def test_the_replica_is_exactly_the_committed_epoch(self):
        found = one_round(on_disk(exact=True), 2.0)
        self.assertEqual(found["complaints"], [])

    def test_a_daemon_restarts_and_the_disk_is_there_again(self):  # [33]
        with world_of() as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            begin = time.monotonic()
            world.a.daemon.terminate()
            world.a.daemon.wait()
            world.a.start()
            world.a.must("wait", "vm1", "--state", "protected", "--timeout", "90s", timeout=100)
            write_more(client)
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            world.a.must("unprotect", "vm1")
            self.assertEqual(disk_complaints(world, client, world.a), [])


if __name__ == "__main__":
    unittest.main()
