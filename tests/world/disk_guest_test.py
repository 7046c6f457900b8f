#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The test guest with a disk, by itself, on stock QEMU: what it acknowledged is on its disk after a crash.

Its NBD server keeps to itself what was not flushed, and forgets it when it is killed: so this also shows
that the guest's flushes arrive. With a server that takes no notice of them the same check must find losses.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from disk_check import check, copy_sparse, load_acknowledged
from world import CLIENT_IP, GUEST_IP, IMAGE, Client, Namespace, wait_until

IMAGE_DIR = os.path.join(IMAGE, "disk")


class Machine:
    """A QEMU and the NBD server of its disk, in one namespace. It loses power as a whole."""

    def __init__(self, folder, namespace, cache):
        self.socket, self.disk = os.path.join(folder, "nbd.sock"), os.path.join(folder, "disk.raw")
        self.server = subprocess.Popen(
            ["nbdkit", "--foreground", "--exit-with-parent", "--unix", self.socket, "--filter=cache", "file",
             self.disk, f"cache={cache}"], env={**os.environ, "TMPDIR": folder})
        wait_until("the NBD server", lambda: os.path.exists(self.socket), 10)
        append = f"console=ttyS0 quiet panic=1 mitigations=off remusd.ip={GUEST_IP}/24 remusd.root=/dev/vda"
        self.qemu = subprocess.Popen(namespace.command(
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
            "-machine", "pc", "-accel", "tcg", "-cpu", "qemu64", "-m", "256",
            "-kernel", os.path.join(IMAGE_DIR, "vmlinuz"), "-initrd", os.path.join(IMAGE_DIR, "initrd.gz"),
            "-append", append, "-serial", f"file:{folder}/serial.log",
            "-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=net0,romfile=",
            "-blockdev", f"driver=nbd,node-name=disk0,server.type=unix,server.path={self.socket},export=,"
                         "reconnect-delay=60,discard=unmap",
            "-device", "virtio-blk-pci,drive=disk0,serial=disk0,write-cache=on"))

    def lose_power(self):
        for process in (self.server, self.qemu):  # The disk first: nothing reaches it any more.
            process.send_signal(signal.SIGKILL)
        for process in (self.server, self.qemu):
            process.wait()
        if os.path.exists(self.socket):
            os.unlink(self.socket)


class DiskGuest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="remusd-disk-guest-")
        self.addCleanup(shutil.rmtree, self.folder)
        copy_sparse(os.path.join(IMAGE_DIR, "disk.raw"), os.path.join(self.folder, "disk.raw"))
        self.namespace = Namespace(f"remusd{os.getpid()}-disk")
        self.addCleanup(self.namespace.remove)
        self.namespace.links("tuntap add tap0 mode tap", f"addr add {CLIENT_IP}/24 dev tap0",
                             "link set tap0 up")
        self.client = Client(self.namespace, connect_timeout=30, disk_ms=25)
        self.addCleanup(self.client.end)

    def power_on(self, cache):
        machine = Machine(self.folder, self.namespace, cache)
        self.addCleanup(machine.lose_power)
        return machine

    def serve(self, more):
        """Until `more` answers have come from each store."""
        def count():
            seen = self.client.ask("progress")
            return min(seen["records"], seen["database"])

        goal = count() + more
        wait_until(f"{more} answers from the disk", lambda: count() >= goal, 30)

    def on_disk(self, machine):
        known = os.path.join(self.folder, "acknowledged.json")
        self.client.ask(f"acknowledged {known}")
        return check(machine.disk, load_acknowledged(known))

    def test_what_was_acknowledged_survives_power_loss(self):
        begin = time.monotonic()
        machine = self.power_on("writeback")
        self.client.ask("connect")
        self.serve(100)
        machine.lose_power()
        found = self.on_disk(machine)
        self.assertTrue(found["ok"], found)
        self.assertGreaterEqual(found["records"]["acknowledged"], 100)
        self.assertGreaterEqual(found["database"]["acknowledged"], 100)

        machine = self.power_on("writeback")  # The guest's own kernel replays the journal.
        self.serve(20)
        seen = self.client.ask("finish")
        for name in ("records", "database"):
            self.assertEqual(seen[name]["requests_lost_after_ack"], 0, seen)
            self.assertEqual(seen[name]["replies_rolled_back"], 0, seen)
            self.assertEqual(seen[name]["unaudited"], 0, seen)
            self.assertTrue(seen[name]["in_order"], seen)
        machine.lose_power()
        found = self.on_disk(machine)
        self.assertTrue(found["ok"], found)
        print(f"{found['records']['acknowledged']} records and {found['database']['acknowledged']} rows, "
              f"{time.monotonic() - begin:.1f} s")

    def test_lost_flushes_are_seen(self):
        machine = self.power_on("unsafe")
        self.client.ask("connect")
        self.serve(20)
        machine.lose_power()
        found = self.on_disk(machine)
        self.assertFalse(found["ok"], found)
        self.assertGreater(found["records"]["lost"], 0)
        self.assertGreater(found["database"]["lost"], 0)


if __name__ == "__main__":
    unittest.main()
