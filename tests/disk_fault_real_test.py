#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Disks that fail under a protected guest: real daemons, QEMU, a Linux guest on ext4, and nbdkit's error and
delay filters beneath one host's disk or journal (tests/world/faulty_disk.py).

Needs what disk_real_test.py needs, nbdfuse and /dev/fuse. Numbers in brackets are those of the faults that a
test covers. DiskSteps needs a daemon with fail points besides (REMUSD_FAULTS_BUILD).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "world"), os.path.join(HERE, "faults")]
import disk_check  # noqa: E402
import fail_points  # noqa: E402
import faulty_disk  # noqa: E402
from disk_real_test import on_disk, settled, world_of, write_more  # noqa: E402
from failover import boot, complaints, disk_complaints, go_on, protect  # noqa: E402
from world import GUEST_IP, IMAGE, ROOT, WorldError, run, wait_until  # noqa: E402

IMAGE_FILE = os.path.join(IMAGE, "disk", "disk.raw")
JOURNAL_BYTES = 24 << 20
MIB = 1 << 20


@contextlib.contextmanager
def faulty(kind="error", journal=False, **how):
    """A FaultyDisk with the guest's image in it, or one for a journal. It must outlive the world."""
    folder = tempfile.mkdtemp(prefix="remusd-faulty-")
    raw = os.path.join(folder, "raw")
    if journal:
        with open(raw, "wb") as file:
            file.truncate(JOURNAL_BYTES)
    else:
        run("cp", "--sparse=always", "--reflink=auto", IMAGE_FILE, raw)
    disk = faulty_disk.FaultyDisk(folder, raw, kind, **how)
    try:
        yield disk
    finally:
        disk.close()
        shutil.rmtree(folder)


@contextlib.contextmanager
def pair(on=None, disk=None, journal=None, **settings):
    """A world whose host `on` has its copy of the guest's disk, or its journal, on a FaultyDisk."""
    with world_of(reprotect=False, **settings) as world:
        if disk is not None:
            usual = world.disk_of
            world.disk_of = lambda host, guest="vm1": disk.path if host == on else usual(host, guest)
        if journal is not None:
            os.symlink(journal.path, os.path.join(world.hosts[on].dir, "state", "vm1.journal"))
        yield world


def survives(test, world, client, audited=True, timeout=60):
    """A failover from a to b now loses nothing that the client was told. Without `audited` only the disk is
    asked for all that it must have: after a long run the guest does not come to an end with it."""
    begin, end = world.a.kill()
    test.assertTrue(go_on(client, end, timeout=timeout))
    write_more(client)
    found = client.ask(f"finish {begin} {end}")
    if not audited:
        found["records"]["unaudited"] = found["database"]["unaudited"] = 0
    test.assertEqual(complaints(found), [])
    test.assertEqual(disk_complaints(world, client, world.b), [])


def both_stand(client):
    """Returns when neither book has got an answer for a second, with what each has acknowledged."""
    seen = {"progress": None, "since": 0}

    def stand():
        progress = {store: client.ask("progress")[store] for store in ("records", "database")}
        if progress != seen["progress"]:
            seen.update(progress=progress, since=time.monotonic())
        return time.monotonic() - seen["since"] > 1

    wait_until("both books to stand", stand, 30)
    return seen["progress"]


@contextlib.contextmanager
def much_written(world):
    """The guest writes as fast as it can for a second: more than a journal takes."""
    load = subprocess.Popen(
        world.client_ns.command(sys.executable, os.path.join(ROOT, "bench", "load.py"), "disk",
                                "--guest", GUEST_IP, "4", "1000", "0"), stdout=subprocess.DEVNULL)
    try:
        yield
        if load.wait(60) != 0:
            raise WorldError("the guest could not write its disk")
    finally:
        load.kill()
        load.wait()


@unittest.skipIf(faulty_disk.missing(), faulty_disk.missing())
class DiskFault(unittest.TestCase):
    def backup_fails(self, kind, told, **how):
        """The backup's disk fails under a guest that writes: the guest is not harmed, protection ends and
        says why, and begins anew once the disk works."""
        journal = how.pop("journal", False)
        with faulty(kind, journal=journal, **how) as disk, \
                pair("b", **{"journal" if journal else "disk": disk}, disk_buffer_mib=8) as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            disk.fail()
            # The disk is flushed when half of the journal is full.
            with much_written(world):
                status = world.a.wait_state("unprotected", timeout=60)
            self.assertIn("disk", status["reason"])
            self.assertIn(told, status["reason"])
            self.assertGreater(disk.failures(), 0)
            # Nobody tries again what may have been lost: the replica is not one any more.
            self.assertNotIn("standby", world.b.cli("status", "vm1", "--json").stdout)
            write_more(client)
            # A disk that still fails is no replica: that is found out at the first flush, which the first
            # acknowledgement does not wait for.
            world.a.cli("protect", "vm1", "--peer", "b", "--timeout", "60s", timeout=70)
            with much_written(world):
                self.assertIn(told, world.a.wait_state("unprotected", timeout=60)["reason"])
            disk.heal()
            protect(world)
            write_more(client)
            settled(world)
            survives(self, world, client)

    def test_backups_disk_is_full(self):  # [13]
        self.backup_fails("error", "No space left", error="ENOSPC")

    def test_backups_disk_has_an_error(self):  # [14]
        self.backup_fails("error", "Input/output error", error="EIO")

    def test_backups_flush_fails(self):  # [14]
        self.backup_fails("flush", "Input/output error", error="EIO")

    def test_backups_journal_is_full(self):  # [13]
        self.backup_fails("error", "No space left", error="ENOSPC", journal=True)

    def test_backups_journal_cannot_be_flushed(self):  # [14]
        self.backup_fails("flush", "Input/output error", error="EIO", journal=True)

    def test_backups_disk_hangs(self):  # [28]
        limit = 8 * MIB
        with faulty("hang") as disk, pair("b", disk=disk, disk_buffer_mib=8) as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            disk.hang()

            # What does not get to the disk is kept up to the bound; then acknowledgements are withheld.
            def withheld():
                behind = world.b.status()["disks"]["replica"]["behind_bytes"]
                self.assertLessEqual(behind, 2 * limit + 96 * MIB)
                return behind > limit

            # The answer to the load waits for its writes, and they for the backup.
            with much_written(world):
                try:
                    wait_until("acknowledgements to be withheld", withheld, 60)
                finally:
                    disk.go_on()
            write_more(client)
            on_a = world.a.status()
            self.assertEqual(on_a["state"], "protected", on_a["reason"])
            self.assertLessEqual(world.a.status()["disks"]["held_bytes"]["used"], limit + 96 * MIB)
            survives(self, world, client)

    def test_daemon_killed_before_the_journal_lets_go(self):  # [3, 33]
        """What the promoted guest has written is not undone by a journal that is still there."""
        with faulty("hang", journal=True) as journal, pair("b", journal=journal, disk_buffer_mib=64) as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            journal.hang()
            begin, end = world.a.kill()
            self.assertTrue(go_on(client, end, timeout=60))
            both_stand(client)  # Each has written, and waits for a flush.
            world.b.daemon.kill()
            journal.go_on()
            world.b.daemon.wait()
            world.b.start()
            world.b.must("wait", "vm1", "--state", "running", "--timeout", "60s", timeout=70)
            write_more(client)
            found = client.ask(f"finish {begin} {end}")
            self.assertEqual(complaints(found), [])
            self.assertEqual(disk_complaints(world, client, world.b), [])

    def primary_fails(self, kind, error="EIO"):
        """The primary's disk fails: that is told to the guest, which goes on, protected, as on any machine
        whose disk has failed; nothing that it acknowledged is lost."""
        with faulty(kind, error=error) as disk, pair("a", disk=disk) as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            begin = time.monotonic()
            disk.fail()
            serial = os.path.join(world.dir, "serial.log")

            def told():
                with open(serial, encoding="utf-8", errors="replace") as file:
                    return "I/O error" in file.read()

            wait_until("the guest to be told", told, 60)
            self.assertGreater(disk.failures(), 0)
            acknowledged = both_stand(client)  # The first error may have been the other's.
            disk.heal()
            # It runs, and is protected; what keeps books on that disk has stopped to.
            self.assertTrue(go_on(client, time.monotonic()))
            on_a = world.a.status()
            self.assertEqual(on_a["state"], "protected", on_a["reason"])
            if kind == "error":  # The backup may have it.
                self.assertIn("failed here", " ".join(on_a["disks"]["notes"]))
            seen = client.ask("progress")
            for store in ("records", "database"):
                self.assertLessEqual(seen[store], acknowledged[store] + 1, "nothing is stored any more")
            begin, end = world.a.kill()
            self.assertTrue(go_on(client, end, timeout=60))
            known = os.path.join(world.dir, "acknowledged.json")
            client.ask(f"acknowledged {known}")
            found = client.ask(f"finish {begin} {end}")
            for store in ("records", "database"):  # not in a guest whose file system has given up
                found.pop(store)
            self.assertEqual(complaints(found), [])
            world.b.must("stop", "vm1")
            on_b = disk_check.check(world.disk_of("b"), disk_check.load_acknowledged(known))
            self.assertEqual((on_b["records"]["lost"], on_b["database"]["lost"]), (0, 0), on_b)
            self.assertEqual(on_b["database"]["integrity"], "ok", on_b)

    def test_primarys_disk_has_an_error(self):  # [15]
        self.primary_fails("error")

    def test_primarys_disk_is_full(self):  # [15]
        self.primary_fails("error", error="ENOSPC")

    def test_primarys_flush_fails(self):  # [15]
        self.primary_fails("flush")

    def test_primarys_disk_grows(self):  # [16]
        with pair() as world:
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            here, there = world.disk_of("a"), world.disk_of("b")
            old = os.path.getsize(here)
            self.assertEqual(world.a.status()["disks"]["notes"], [])
            begin = time.monotonic()
            os.truncate(here, old + 32 * MIB)
            write_more(client)
            status = world.a.status()
            self.assertEqual((status["state"], status["disks"]["bytes"]), ("protected", old))
            self.assertIn("stopped and started", status["disks"]["notes"][0])
            self.assertIn(f"{old + 32 * MIB} bytes by now", world.a.must("status", "vm1"))
            self.assertTrue(go_on(client, begin))
            self.assertEqual(complaints(client.ask(f"finish {begin} {begin}")), [])
            # At the next start the guest has all of it, and so has its replica.
            client.end()
            world.a.must("unprotect", "vm1")
            world.a.must("stop", "vm1")
            world.a.must("start", "vm1")
            self.assertEqual(world.a.status()["disks"]["bytes"], old + 32 * MIB)
            client = world.client(disk_ms=25)
            client.ask("connect", timeout=90)
            protect(world)
            self.assertEqual(os.path.getsize(there), old + 32 * MIB)
            write_more(client)
            settled(world)
            survives(self, world, client)


class DiskSteps(unittest.TestCase):
    """The backup's daemon is killed at each step between the receipt of an epoch and its last flush."""
    IN_FIRST_SYNC = ("disk.marked", "disk.begun")

    def test_backup_killed_at_every_step(self):  # [3, 14]
        build = os.environ.get("REMUSD_FAULTS_BUILD", os.path.join(ROOT, "build", "asan"))
        program = os.path.join(build, "remusd")
        steps = [name for name in fail_points.names(program) if name.startswith("disk.")]
        self.assertTrue(steps, f"{program} has no fail points")
        # With sanitizers the daemon on b is slow, and nobody is to take that for a death.
        with pair(disk_buffer_mib=8, heartbeat_lost=150) as world:
            table = os.path.join(world.b.dir, "fail-points")
            points = fail_points.FailPoints(table, program)
            self.addCleanup(points.close)
            world.b.program, world.b.environment = program, {"REMUSD_FAIL_POINT_TABLE": table}
            client = boot(world, on_disk())
            protect(world)
            write_more(client)
            for step in steps:
                with self.subTest(step=step):
                    self.killed_at(world, client, points, step)
            survives(self, world, client, audited=False)

    def killed_at(self, world, client, points, step):
        if step in self.IN_FIRST_SYNC:
            world.a.must("unprotect", "vm1")
            points.arm(step, "kill")
            world.a.cli("protect", "vm1", "--peer", "b", "--timeout", "60s", timeout=70)
        else:
            # The log lets go of its epochs now and then only.
            points.arm(step, "kill", 1 if step == "disk.flushed" else 5)
        wait_until(f"death at {step}", lambda: world.b.daemon.poll() is not None, 120)
        world.a.wait_state("unprotected", timeout=60)
        points.disarm()
        write_more(client, 10)
        world.b.start(timeout=30)
        protect(world)
        write_more(client, 10)
        settled(world)


if __name__ == "__main__":
    unittest.main()
