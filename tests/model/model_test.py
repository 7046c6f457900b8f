#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Checks remus.pml with spin: safety over all interleavings, liveness with weak fairness, and that planted
defects are found, so that neither proof is empty. Usage: model_test.py [Model.test_...]"""

import os
import re
import subprocess
import tempfile
import unittest

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "remus.pml")
MEMORY_MIB = 1800
DEPTH = 500000
# What a state that the search never reaches would hide is caught by the least number that is expected.
LEAST_STATES = 500000


class Model(unittest.TestCase):
    def search(self, *defines, liveness=False):
        """Runs one search; returns its errors, its stored states and what it printed."""
        with tempfile.TemporaryDirectory() as work:
            def run(*command):
                return subprocess.run(command, cwd=work, capture_output=True, text=True, check=True,
                                      timeout=240).stdout
            run("spin", "-a", *[f"-D{define}" for define in defines], MODEL)
            how = ["-DNFAIR=3"] if liveness else ["-DSAFETY", "-DNOCLAIM"]
            run("gcc", "-O2", "-w", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}", *how, "-o", "pan", "pan.c")
            out = run("./pan", f"-m{DEPTH}", "-w22", *(["-a", "-f"] if liveness else []))
        for trouble in ("max search depth too small", "out of memory", "search not completed"):
            if "errors: 0" in out:
                self.assertNotIn(trouble, out, out)
        errors = int(re.search(r"errors: (\d+)", out).group(1))
        states = int(re.search(r"(\d+) states, stored", out).group(1))
        print(f"{' '.join(defines) or 'as it is'}, {'liveness' if liveness else 'safety'}: "
              f"{states} states, {errors} errors", flush=True)
        return errors, states, out

    def holds(self, *defines, liveness=False):
        errors, states, out = self.search(*defines, liveness=liveness)
        self.assertEqual(errors, 0, out)
        self.assertGreater(states, LEAST_STATES, out)

    def test_safety(self):
        self.holds("EPOCHS=3")

    def test_liveness(self):
        self.holds("EPOCHS=2", liveness=True)

    def test_planted_defects_are_found(self):
        for plant, liveness in (("SKIP_ARBITER", False), ("TWO_UNPLUGS", False), ("TRUST_UNKNOWN", False),
                                ("ACK_AFTER_LATCH", False), ("APPLY_HALF", False), ("FORGET_NONCE", True),
                                ("ASK_UNLOADED", True)):
            with self.subTest(plant=plant):
                errors, _, out = self.search(f"PLANT_{plant}", liveness=liveness)
                self.assertGreater(errors, 0, out)


if __name__ == "__main__":
    unittest.main()
