# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The table of fail points of one running daemon (ckpt/fail_point.h), armed and read from outside."""

import mmap
import os
import struct
import subprocess

ACTIONS = {"none": 0, "kill": 1, "stop": 2, "error": 3}
SLOT = struct.Struct("<QQII")
EVER = (1 << 32) - 1


def names(program):
    """Those that this daemon was built with; none for one that ships."""
    done = subprocess.run([program, "--fail-points"], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


class FailPoints:
    def __init__(self, path, program):
        self.names = names(program)
        self.path = path
        size = SLOT.size * len(self.names)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.file, size)
        self.map = mmap.mmap(self.file, size)

    def passes(self, name):
        return SLOT.unpack_from(self.map, self._at(name))[0]

    def arm(self, name, action, ahead=1, count=1):
        """The action comes at the `ahead`-th pass from now on, and holds for `count` passes."""
        at = self._at(name)
        struct.pack_into("<I", self.map, at + 20, 0)
        struct.pack_into("<QI", self.map, at + 8, self.passes(name) + ahead, count)
        struct.pack_into("<I", self.map, at + 20, ACTIONS[action])

    def disarm(self):
        for name in self.names:
            struct.pack_into("<I", self.map, self._at(name) + 20, 0)

    def close(self):
        self.map.close()
        os.close(self.file)

    def _at(self, name):
        return self.names.index(name) * SLOT.size
