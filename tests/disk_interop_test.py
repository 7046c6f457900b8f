#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Other people's NBD clients on our server: libnbd's and QEMU's tools. REMUSD_BUILD names the build."""

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("REMUSD_BUILD", os.path.join(ROOT, "build", "release"))
PATIENCE_S = 120
MIB = 1 << 20
MISSING = [tool for tool in ("nbdinfo", "nbdcopy", "qemu-img", "qemu-io") if not shutil.which(tool)]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@unittest.skipIf(MISSING, f"there is no {', '.join(MISSING)}")
class Interop(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="remusd-interop-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def disk(self, name, size=16 * MIB):
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        return self.path(name)

    def random_file(self, name, size=16 * MIB, holes=True):
        """Random content with holes in it, the same for the same name."""
        chance = random.Random(name)
        with open(self.path(name), "wb") as file:
            file.truncate(size)
            for at in range(0, size, 256 << 10):
                if not holes or chance.random() < 0.5:
                    file.seek(at)
                    file.write(chance.randbytes(256 << 10))
        return self.path(name)

    def serve(self, *words):
        server = subprocess.Popen([os.path.join(BUILD, "tests", "nbd_serve"), *words], stdout=subprocess.PIPE,
                                  text=True)
        self.addCleanup(self.end, server)
        self.assertEqual(server.stdout.readline(), "ready\n")
        return server

    def end(self, server):
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(PATIENCE_S), 0)
        server.stdout.close()

    def uri(self, export="", at="s"):
        return f"nbd+unix:///{export}?socket={self.path(at)}"

    def test_nbdinfo_sees_what_is_offered(self):
        self.serve(self.disk("d"), self.path("s"))
        told = json.loads(run("nbdinfo", "--json", self.uri("disk0")))
        export = told["exports"][0]
        self.assertEqual(told["structured"], True)
        self.assertEqual(export["export-size"], 16 * MIB)
        for can in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache", "can_df"):
            self.assertIs(export[can], True, can)
        self.assertIs(export["is_read_only"], False)
        self.assertEqual((export["block_size_minimum"], export["block_size_preferred"],
                          export["block_size_maximum"]),
                         (1, 4096, 32 * MIB))
        self.assertIn("disk0", run("nbdinfo", "--list", self.uri()))

    def test_nbdinfo_maps_holes(self):
        path = self.disk("d")
        with open(path, "r+b") as file:
            file.seek(4 * MIB)
            file.write(b"x" * MIB)
        self.serve(path, self.path("s"))
        runs = json.loads(run("nbdinfo", "--map", "--json", self.uri()))
        self.assertEqual([(one["offset"], one["length"], one["type"]) for one in runs],
                         [(0, 4 * MIB, 3), (4 * MIB, MIB, 0), (5 * MIB, 11 * MIB, 3)])

    def test_nbdcopy_both_ways(self):
        source = self.random_file("source")
        path = self.disk("d")
        server = self.serve(path, self.path("s"))
        run("nbdcopy", "--connections=4", "--flush", source, self.uri())
        run("nbdcopy", "--connections=4", self.uri(), self.path("back"))
        self.assertTrue(filecmp.cmp(source, self.path("back"), shallow=False))
        self.end(server)
        self.assertTrue(filecmp.cmp(source, path, shallow=False))

    def test_nbdcopy_from_one_disk_to_another(self):
        one, two = self.random_file("one"), self.random_file("two")
        self.serve(one, self.path("s"), "--read-only", two, self.path("t"))
        run("nbdcopy", "--destination-is-zero", self.uri(), self.path("copy"))
        run("nbdcopy", self.uri("disk0"), self.uri("disk1", "t"))
        self.assertTrue(filecmp.cmp(one, self.path("copy"), shallow=False))
        self.assertTrue(filecmp.cmp(one, two, shallow=False))

    def test_qemu_img_converts_and_compares(self):
        source = self.random_file("source")
        self.serve(self.disk("d"), self.path("s"))
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, self.uri())
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, self.uri())
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.uri(), self.path("q"))
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path("q"), self.uri())
        mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", self.uri()))
        self.assertEqual(sum(one["length"] for one in mapped), 16 * MIB)
        self.assertTrue(any(not one["data"] for one in mapped))

    def test_qemu_io_scripts(self):
        self.serve(self.disk("d"), self.path("s"))
        script = ["write -P 1 0 64k", "write -P 2 512 8k", "read -P 2 512 8k", "read -P 1 8704 4k",
                  "write -f -P 3 1M 1M", "write -z 1M 64k", "read -P 0 1M 64k", "read -P 3 1114112 4k",
                  "write -z -u 0 4k", "read -P 0 0 4k", "discard 1M 1M", "read -P 0 1M 1M", "flush",
                  "aio_write -P 5 2M 4M", "aio_write -P 6 8M 1k", "aio_read 0 1M", "aio_flush",
                  "read -P 5 2M 4M", "read -P 6 8M 1k"]
        told = run("qemu-io", "-f", "raw", self.uri(), *(word for line in script for word in ("-c", line)))
        self.assertNotIn("failed", told.lower())

    def test_read_only_stays_as_it_is(self):
        path = self.random_file("d")
        shutil.copy(path, self.path("same"))
        self.serve(path, self.path("s"), "--read-only")
        self.assertIs(json.loads(run("nbdinfo", "--json", self.uri()))["exports"][0]["is_read_only"], True)
        with self.assertRaises(AssertionError):
            run("nbdcopy", self.random_file("other"), self.uri())
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", self.path("same"), self.uri())

    def test_several_clients_at_once_on_several_disks(self):
        sources = [self.random_file(f"source{i}") for i in range(3)]
        words = []
        for i in range(3):
            words += [self.disk(f"d{i}"), self.path(f"s{i}")]
        self.serve(*words)
        wrong = []

        def copy(i):
            try:
                run("nbdcopy", sources[i], self.uri(f"disk{i}", f"s{i}"))
                run("qemu-img", "compare", "-f", "raw", "-F", "raw", sources[i], self.uri("", f"s{i}"))
            except AssertionError as error:
                wrong.append(str(error))

        threads = [threading.Thread(target=copy, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_a_disk_of_terabytes(self):
        path = self.disk("d", 8 << 40)
        self.serve(path, self.path("s"))
        end = (8 << 40) - MIB
        run("qemu-io", "-f", "raw", self.uri(), "-c", f"write -P 7 {end} 1M", "-c", f"read -P 7 {end} 1M",
            "-c", f"discard {end} 64k", "-c", f"read -P 0 {end} 64k", "-c", "write -z -u 0 1G")
        told = json.loads(run("nbdinfo", "--json", self.uri()))
        self.assertEqual(told["exports"][0]["export-size"], 8 << 40)


if __name__ == "__main__":
    unittest.main()
