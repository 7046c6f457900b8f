#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Roles over time with real daemons, QEMU and a Linux guest: who protects whom, without an operator.

Needs what pair_real_test.py needs. Numbers in brackets are those of the faults that a test covers.
"""

import json
import os
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "world"))
from failover import boot, complaints, go_on, protect, protection, reboot  # noqa: E402
from pair_real_test import is_qemu, options  # noqa: E402
from switchover import back_and_forth  # noqa: E402
from world import World, wait_until  # noqa: E402

# A busy machine's silence is not what is tested here.
SETTINGS = {"reprotect_min_ms": 300, "reprotect_max_ms": 1000, "heartbeat_lost": 25}
BOOT_S = 150


def world_of(**settings):
    return World({**protection(options()), **SETTINGS, **settings})


def qemus(host):
    return [pid for pid in host.ns.pids() if is_qemu(pid)]


class Roles(unittest.TestCase):
    def protected_by(self, primary, backup, client, since):
        """Without an operator: protected again, heard, and nothing was taken back."""
        primary.must("wait", "vm1", "--state", "protected", "--timeout", "30s")
        self.assertEqual(backup.wait_state("standby")["role"], "backup")
        self.assertTrue(go_on(client, since), "nobody is heard")
        self.assertEqual([len(qemus(host)) for host in (primary, backup)], [1, 1])


class ProtectAgain(Roles):
    def test_after_a_failover_and_back(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            begin, end = world.a.kill()
            self.assertTrue(go_on(client, end))
            world.a.start()
            self.protected_by(world.b, world.a, client, end)
            begin, end = world.b.kill()
            self.assertTrue(go_on(client, end), "the host that came back must carry the guest")
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])

    def test_by_the_stale_primary_after_a_partition(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            begin = time.monotonic()
            world.a.ns.links("link set repl down")
            self.assertTrue(go_on(client, begin))
            winner = world.a if qemus(world.a) else world.b
            world.a.ns.links("link set repl up")
            self.protected_by(winner, world.b if winner is world.a else world.a, client, time.monotonic())
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])


class Switchover(Roles):
    """Planned: nothing is lost, and the new primary is protected by the old one."""

    def test_back_and_forth(self):
        found, rounds = back_and_forth(options(heartbeat_lost=25), 4)
        self.assertEqual(found["complaints"], [])
        self.assertEqual(len(rounds), 4)
        self.assertTrue(all(one["stood_ms"] > 0 for one in rounds))

    def test_asked_for_on_the_backup(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            world.b.must("switchover", "vm1")
            self.protected_by(world.b, world.a, client, time.monotonic())
            refused = world.a.cli("switchover", "vm2")
            self.assertEqual(refused.returncode, 4, refused.stderr)


class Restart(Roles):
    """A daemon ends, its hypervisor processes live [33, 38]."""

    def test_primary_daemon_killed_while_protected(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            left = world.a.status()["pid"]
            begin = time.monotonic()
            world.a.daemon.kill()
            world.a.daemon.wait()
            world.b.wait_state("unprotected")
            self.assertIn(left, qemus(world.a), "a daemon's death ends no guest")
            world.a.start()
            self.protected_by(world.b, world.a, client, time.monotonic())
            self.assertNotIn(left, qemus(world.a), "the copy that lost must be ended")
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])

    def test_primary_daemon_killed_while_unprotected(self):
        with world_of() as world:
            client = boot(world, options())
            left = world.a.status()["pid"]
            begin = time.monotonic()
            world.a.daemon.kill()
            world.a.daemon.wait()
            world.a.start()
            adopted = world.a.wait_state("running")
            self.assertEqual(adopted["pid"], left)
            self.assertTrue(go_on(client, time.monotonic()), "the adopted guest must be reachable")
            protect(world)
            reboot(client, BOOT_S)
            self.assertEqual(client.ask(f"finish {begin} {begin}")["guest_memory_corrupt"], 0)
            os.kill(left, signal.SIGKILL)  # Not a child of this daemon: its end is noticed all the same.
            world.b.wait_state("unprotected")

    def test_primary_daemon_ended_in_order_and_started(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            before = world.a.status()
            begin = time.monotonic()
            world.a.stop()
            self.assertNotIn("vm1", world.b.cli("list").stdout, "the backup must not promote")
            world.a.start()
            self.protected_by(world.a, world.b, client, time.monotonic())
            after = world.a.status()
            self.assertEqual([after[key] for key in ("pid", "peer", "epoch_ms")],
                             [before[key] for key in ("pid", "peer", "epoch_ms")])
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])

    def test_while_the_arbiter_does_not_answer(self):
        with world_of(arbiter_timeout_ms=200) as world:
            client = boot(world, options())
            left = world.a.status()["pid"]
            world.a.daemon.kill()
            world.a.daemon.wait()
            record = os.path.join(world.dir, "arbiter", "vm1.json")
            with open(record, encoding="utf-8") as file:
                kept = file.read()
            with open(record, "w", encoding="utf-8") as file:
                file.write("damaged")
            world.a.start()
            frozen = world.a.wait_state("frozen")
            self.assertEqual(frozen["pid"], left)
            self.assertIn("arbiter", world.a.status()["reason"])
            self.assertEqual(world.a.cli("start", "vm1").returncode, 1)
            with open(record, "w", encoding="utf-8") as file:
                file.write(kept)
            world.a.wait_state("running")
            self.assertTrue(go_on(client, time.monotonic()))

    def test_backup_daemon_killed(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            standby = qemus(world.b)
            wait_until("the standby to be remembered", lambda: os.path.exists(
                os.path.join(world.b.dir, "state", "guests", "vm1.json")), 10)
            world.b.daemon.kill()
            world.b.daemon.wait()
            world.a.wait_state("unprotected")
            self.assertEqual(qemus(world.b), standby)
            world.b.start()
            self.protected_by(world.a, world.b, client, time.monotonic())
            self.assertNotEqual(qemus(world.b), standby)


class Guest(Roles):
    """What the guest does by itself is told apart [34, 35]."""

    def test_reboots_and_stays_protected(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            reboot(client, BOOT_S)
            status = world.a.status()
            self.assertEqual((status["state"], status["guest"]["reboots"]), ("protected", 1))

    def test_powers_off_and_is_not_promoted(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            client.ask("load 7 0")
            stopped = world.a.wait_state("stopped")
            self.assertEqual(stopped["reason"], "the guest powered off")
            wait_until("the replica to be dropped", lambda: "vm1" not in world.b.cli("list").stdout, 10)
            self.assertEqual(qemus(world.a) + qemus(world.b), [])
            with open(os.path.join(world.dir, "arbiter", "vm1.json"), encoding="utf-8") as file:
                self.assertEqual(json.load(file)["peer"], "")
            world.a.must("start", "vm1")

    def test_hypervisor_is_killed_and_the_backup_takes_over(self):
        with world_of() as world:
            client = boot(world, options())
            protect(world)
            begin = time.monotonic()
            os.kill(world.a.status()["pid"], signal.SIGKILL)
            self.protected_by(world.b, world.a, client, time.monotonic())
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])


if __name__ == "__main__":
    unittest.main()
