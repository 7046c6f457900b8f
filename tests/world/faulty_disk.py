# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A file that fails on command: nbdkit's filters over a raw file, and nbdfuse to make a file of it again.

    error    writes, zeroes and trims fail with `error` while the trigger is there
    flush    writes go well, and flushes fail while the trigger is there: what was written lies in a cache
    hang     nothing is answered from hang() to go_on()
"""

import os
import shutil
import signal
import subprocess

from world import run, wait_until

FUSE = "/dev/fuse"


def missing():
    """What keeps such files from being made here; None when nothing does."""
    for program in ("nbdfuse", "nbdkit"):
        if shutil.which(program) is None:
            return f"{program} is not installed (scripts/packages.txt)"
    return None if os.path.exists(FUSE) else f"there is no {FUSE}"


class FaultyDisk:
    """Lives in `folder`, which must not be removed before close(). `raw` is the file beneath."""

    def __init__(self, folder, raw, kind="error", error="EIO"):
        self.trigger = os.path.join(folder, "trigger")
        self.mount = os.path.join(folder, "mount")
        self.path = os.path.join(self.mount, "disk")
        os.makedirs(self.mount)
        failing = [f"error={error}", f"error-file={self.trigger}",
                   *(f"error-{what}-rate=100%" for what in ("pwrite", "zero", "trim"))]
        command = {"error": ["--filter=error", "file", raw, *failing],
                   "flush": ["--filter=cache", "--filter=error", "file", raw, "cache=writeback", *failing],
                   "hang": ["file", raw]}[kind]
        self.log = open(os.path.join(folder, "log"), "ab")  # pylint: disable=consider-using-with
        self.process = subprocess.Popen(["nbdfuse", self.path, "--command", "nbdkit", "-s", *command],
                                        stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        env={**os.environ, "TMPDIR": folder}, start_new_session=True)
        wait_until("nbdfuse", lambda: os.path.exists(self.path) or self.process.poll() is not None, 10)

    def fail(self):
        with open(self.trigger, "w", encoding="ascii"):
            pass

    def heal(self):
        os.unlink(self.trigger)

    def hang(self):
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.killpg(self.process.pid, signal.SIGCONT)

    def failures(self):
        """How many requests were failed on purpose."""
        with open(self.log.name, encoding="utf-8", errors="replace") as file:
            return file.read().count("injecting")

    def close(self):
        """When nobody has the file open any more."""
        self.go_on()
        run("umount", self.mount, check=False)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
