# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Is the replica of a disk exactly the last committed epoch, to the byte?

What the replica began with, and the stream that the primary recorded, make that epoch once more: by
verify_stream.py, which shares no code with the daemons. Nobody may promote before that was looked at, for the
guest would write on; so the arbiter's record is unreadable meanwhile, and the failover takes longer."""

import filecmp
import os
import shutil
import sys

from world import ROOT, run, wait_until

DECODER = os.path.join(ROOT, "tests", "verify_stream.py")


class Exact:
    """Of vm1, protected by host b. Made before the daemons are started; then in the order of its methods."""

    def __init__(self, world):
        self.world = world
        self.stream = os.path.join(world.dir, "stream")
        self.made = os.path.join(world.dir, "disk0.raw")  # as verify_stream.py names it
        self.record = os.path.join(world.dir, "arbiter", "vm1.json")
        self.kept = ""
        world.protection["record_path"] = self.stream
        world.configure(world.a)

    def begin(self):
        """Before it is protected."""
        shutil.copyfile(self.world.disk_of("b"), self.made)

    def keep_from_promotion(self):
        """Before the primary dies."""
        with open(self.record, encoding="utf-8") as file:
            self.kept = file.read()
        with open(self.record, "w", encoding="utf-8") as file:
            file.write("damaged")

    def complaints(self):
        """After it has died."""
        backup = self.world.b
        backup.wait_state("frozen")

        def applied():
            status = backup.status()
            return (status["epochs"]["applied"] == status["epochs"]["acked"] and
                    status["disks"]["replica"]["behind_bytes"] == 0)

        wait_until("the replica to be applied", applied, 10)
        epoch = backup.status()["epochs"]["acked"]
        done = run(sys.executable, DECODER, "--allow-cut", "--disks", self.world.dir, "--until", str(epoch),
                   self.stream, check=False, timeout=120)
        if done.returncode != 0:
            return [f"the recorded stream: {done.stdout}{done.stderr}"]
        if not filecmp.cmp(self.made, self.world.disk_of("b"), shallow=False):
            return [f"the replica is not epoch {epoch}"]
        return []

    def let_promote(self):
        with open(self.record, "w", encoding="utf-8") as file:
            file.write(self.kept)
