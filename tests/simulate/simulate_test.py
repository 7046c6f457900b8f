#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The simulation as a program: a seed fixes a run bit by bit, and what it prints can be relied on.
Usage: simulate_test.py PROGRAM PLANT,PLANT,..."""

import json
import subprocess
import sys
import unittest

PROGRAM, PLANTS = sys.argv[1], sys.argv[2].split(",")
SEEDS = ["--start", "40", "--seeds", "40"]


def run(*arguments):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


def summary(done):
    return json.loads(done.stdout.splitlines()[-1])


class Program(unittest.TestCase):
    def test_same_seeds_same_trace(self):
        first, second = (run(*SEEDS, "--json", "--trace") for _ in range(2))
        self.assertEqual(first.returncode, 0, first.stdout[-2000:])
        self.assertEqual(first.stdout, second.stdout)
        self.assertGreater(len(first.stdout.splitlines()), 1000)
        # Watching changes nothing, and other seeds are other runs.
        self.assertEqual(summary(first), summary(run(*SEEDS, "--json")))
        self.assertNotEqual(summary(first)["digest"], summary(run("--seeds", "40", "--json"))["digest"])

    def test_runs_reach_what_they_are_to_judge(self):
        told = summary(run("--seeds", "400", "--json"))
        self.assertEqual((told["seeds"], told["violations"]), (400, 0))
        self.assertGreater(told["epochs"], 400 * 10)
        for count in ("failovers", "passes", "fences", "crashes", "partitions", "freezes", "ambiguous"):
            self.assertGreater(told[count], 400 // 10, count)
        self.assertGreater(told["corruptions"], 0)
        self.assertGreater(told["switchovers"], 0)
        self.assertGreater(told["loads_failed"], 0)
        for count in ("disk_failures", "guest_disk_errors", "replays"):
            self.assertGreater(told[count], 400 // 20, count)

    def test_violation_tells_its_seed_and_the_way_there(self):
        done = run("--seeds", "5000", "--plant", "skip_arbiter", "--json")
        self.assertEqual(done.returncode, 1)
        told = summary(done)
        self.assertEqual(told["violations"], 1)
        seed = told["seeds"] - 1
        self.assertIn(f"\nseed {seed}: ", done.stdout)
        self.assertIn("VIOLATION", done.stdout)
        again = run("--start", str(seed), "--seeds", "1", "--plant", "skip_arbiter")
        self.assertEqual(done.stdout.splitlines()[:-1], again.stdout.splitlines())

    def test_plants_are_those_that_are_tested(self):
        self.assertEqual(run("--list-plants").stdout.split(), PLANTS)
        self.assertGreaterEqual(len(PLANTS), 12)

    def test_wrong_usage(self):
        for wrong in (["--seeds"], ["--seeds", "-1"], ["--plant", "none"], ["--start", "x"], ["seed"]):
            done = run(*wrong)
            self.assertEqual((done.returncode, done.stdout), (2, ""), wrong)
            self.assertIn("usage:", done.stderr)
        self.assertEqual(run("--help").returncode, 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
