#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A disk on storage that both hosts see, with real daemons, QEMU and a Linux guest on ext4.

The storage is a file that both hosts open. The guest keeps records in a file and rows in a SQLite database,
and answers once they are flushed; nothing of an epoch that is not acknowledged may be on the disk after a
failover.
Needs what pair_real_test.py needs.
"""

import json
import os
import random
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "world"))
from disk_real_test import on_disk, world_of, write_more  # noqa: E402
from failover import boot, complaints, disk_complaints, go_on, protect  # noqa: E402
from world import run, wait_until  # noqa: E402

KILLS = 5
DECODER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "verify_stream.py")


def fence_all(world, agent):
    """Each host has a fence agent for the other. /bin/true says at once that it is off: it was killed."""
    for host, peer in ((world.a, "b"), (world.b, "a")):
        os.makedirs(os.path.join(host.dir, "conf.d"), exist_ok=True)
        with open(os.path.join(host.dir, "conf.d", "fence.toml"), "w", encoding="utf-8") as file:
            file.write(f'[peer.{peer}]\nfence = "{agent}"\n')


class Hold(unittest.TestCase):
    def start(self, world, agent="/bin/true", where=True, **changes):
        fence_all(world, agent)
        client = boot(world, on_disk(**changes), hold=where)
        protect(world)
        self.assertEqual(world.a.status()["disks"]["modes"], ["hold"])
        self.assertEqual(world.b.status()["disks"]["modes"], ["hold"])
        write_more(client)
        return client

    def settled(self, host, client, world):
        """The guest's disk is whole on the shared storage, and all that was acknowledged is on it."""
        self.assertEqual(disk_complaints(world, client, host), [])

    def test_five_kills(self):
        with world_of() as world:
            client = self.start(world)
            source, target = world.a, world.b
            for _ in range(KILLS):
                time.sleep(random.uniform(0.1, 0.6))  # The moment of the kill: it is the experiment.
                begin, end = source.kill()
                self.assertTrue(go_on(client, end, timeout=60))
                write_more(client)
                source.start()
                target.must("wait", "vm1", "--state", "protected", "--timeout", "60s", timeout=70)
                write_more(client)
                source, target = target, source
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            source.must("unprotect", "vm1")
            self.settled(source, client, world)

    def test_power_loss(self):
        with world_of() as world:
            record = os.path.join(world.dir, "stream")
            world.protection["record_path"] = record
            world.configure(world.a)
            client = self.start(world, dirty=8000)
            begin, end = world.a.kill(cut_power=True)
            self.assertTrue(go_on(client, end, timeout=60))
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            self.settled(world.b, client, world)
            done = run(sys.executable, DECODER, "--allow-cut", record, check=False, timeout=120)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertGreater(json.loads(done.stdout)["settled"], 10)

    def test_switchovers_lose_nothing(self):
        with world_of() as world:
            client = self.start(world)
            begin = time.monotonic()
            for source, target in ((world.a, world.b), (world.b, world.a), (world.a, world.b)):
                source.must("switchover", "vm1")
                target.must("wait", "vm1", "--state", "protected", "--timeout", "60s", timeout=70)
                write_more(client)
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            world.b.must("unprotect", "vm1")
            self.settled(world.b, client, world)

    def test_unprotect_writes_all_that_was_held(self):
        with world_of() as world:
            client = self.start(world)
            begin = time.monotonic()
            for _ in range(2):
                world.a.must("unprotect", "vm1")
                write_more(client)
                wait_until("nothing to be held",
                           lambda: world.a.status()["disks"]["held_bytes"]["used"] == 0, 20)
                self.assertFalse(os.path.exists(os.path.join(world.a.dir, "state", "vm1.held")))
                protect(world)
                write_more(client)
            world.a.must("unprotect", "vm1")
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            self.settled(world.a, client, world)

    def test_a_lost_backup_lets_the_guest_go_on(self):
        with world_of() as world:
            client = self.start(world)
            begin = time.monotonic()
            world.b.kill()
            write_more(client)
            world.b.start()
            world.a.must("wait", "vm1", "--state", "protected", "--timeout", "60s", timeout=70)
            write_more(client)
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            world.a.must("unprotect", "vm1")
            self.settled(world.a, client, world)

    def test_a_hung_primary_is_fenced(self):  # [27]
        with world_of(reprotect=False) as world:
            agent = os.path.join(world.dir, "fence.sh")
            with open(agent, "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\nip netns pids {world.a.ns.name} | xargs -r kill -9\n")
            os.chmod(agent, 0o755)
            client = self.start(world, agent=agent)
            begin = time.monotonic()
            world.a.ns.signal(signal.SIGSTOP)
            world.b.wait_state("unprotected")
            end = time.monotonic()
            self.assertTrue(go_on(client, end, timeout=60))
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            self.settled(world.b, client, world)

    def test_the_link_is_cut(self):  # [17]
        with world_of(reprotect=False) as world:
            client = self.start(world)
            begin = time.monotonic()
            world.a.ns.links("link set repl down")

            def winner():
                found = [host for host in (world.a, world.b) if host.status()["state"] == "unprotected"]
                return found[0] if found else None

            wait_until("one host to run it alone", winner, 40)
            end = time.monotonic()
            self.assertTrue(go_on(client, end, timeout=60))
            write_more(client)
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            self.settled(winner(), client, world)

    def test_storage_that_fails_breaks_the_disk_and_ends_protection(self):  # [13]
        with world_of(reprotect=False) as world:
            shared = os.path.join(world.dir, "shared")
            os.mkdir(shared)
            run("mount", "-t", "tmpfs", "-o", "size=300m", "none", shared)
            try:
                client = self.start(world, where=shared)
                fill = os.path.join(shared, "ballast")
                with open(fill, "wb", buffering=0) as file:  # nothing is left to be written when it is closed
                    try:
                        while True:
                            file.write(bytes(1 << 20))
                    except OSError:
                        pass
                client.ask("progress")
                status = world.a.wait_state("unprotected", timeout=60)
                self.assertIn("a held disk is broken", status["reason"])
            finally:
                world.close()
                run("umount", "-l", shared, check=False)

    def test_a_killed_daemon_costs_the_guest_and_no_record(self):
        with world_of() as world:
            client = self.start(world)
            begin = time.monotonic()
            world.a.daemon.kill()
            world.a.daemon.wait()
            end = time.monotonic()
            world.a.start()
            self.assertTrue(go_on(client, end, timeout=60))
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            self.settled(world.b, client, world)

    def test_a_daemon_that_ends_in_order_writes_all_that_was_held(self):
        with world_of() as world:
            client = self.start(world)
            begin = time.monotonic()
            world.a.stop()
            world.a.start()
            world.a.must("wait", "vm1", "--state", "protected", "--timeout", "90s", timeout=100)
            write_more(client)
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            world.a.must("unprotect", "vm1")
            self.settled(world.a, client, world)

    def test_a_backup_without_a_fence_agent_refuses(self):
        with world_of(reprotect=False) as world:
            boot(world, on_disk(), hold=True)
            refused = world.a.cli("protect", "vm1", "--peer", "b", "--timeout", "30s")
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("no fence agent for node a", refused.stderr + refused.stdout)
            world.protection["hold_without_fence"] = True
            world.configure(world.b)
            world.b.stop()
            world.b.start()
            protect(world)


if __name__ == "__main__":
    unittest.main()
