#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""docs/faults.md: every fault has its row, and every test that is named there exists."""

import glob
import os
import re
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|([^|]*)\|$", re.MULTILINE)
FAULTS = range(1, 49)


def read(*patterns):
    text = ""
    for pattern in patterns:
        for path in sorted(glob.glob(os.path.join(ROOT, pattern))):
            with open(path, encoding="utf-8") as file:
                text += file.read() + "\n"
    return text


class Table(unittest.TestCase):
    def setUp(self):
        self.rows = {int(number): (fault, how, tests) for number, fault, how, tests
                     in ROW.findall(read("docs/faults.md"))}

    def test_every_fault_has_a_row(self):
        self.assertEqual(sorted(self.rows), list(FAULTS))

    def test_a_fault_without_a_test_says_why(self):
        for number, (_, how, tests) in self.rows.items():
            if "`" not in tests:
                self.assertRegex(how, r"not yet|not tested", f"fault {number}")

    def test_every_test_that_is_named_exists(self):
        cpp = set(re.findall(r"^TEST(?:_F|_P)?\((\w+), (\w+)\)", read("tests/*_test.cc"), re.MULTILINE))
        python = set()
        for text in (read(os.path.relpath(path, ROOT)) for path in glob.glob(f"{ROOT}/tests/*_test.py")):
            for suite, body in re.findall(r"^class (\w+)\(\w[\w.]*\):\n(.*?)(?=^\S|\Z)", text,
                                          re.MULTILINE | re.DOTALL):
                python |= {(suite, name) for name in re.findall(r"def (test_\w+)", body)}
        scenarios = set(re.findall(r"^@scenario\(.*\)\ndef (\w+)\(scene\)", read("tests/faults/*.py"),
                                   re.MULTILINE))
        steps = read("tests/faults/steps.py")
        simulate = read("tests/simulate/checkers.h", "tests/simulate/plants.cc")
        model = set(re.findall(r"def test_(\w+)", read("tests/model/model_test.py")))
        for number, (_, _, tests) in self.rows.items():
            for name in re.findall(r"`([^`]+)`", tests):
                with self.subTest(fault=number, test=name):
                    kind, _, rest = name.partition("/")
                    if kind == "faults" and rest.endswith("_*"):
                        self.assertIn(f"def {rest[:-2]}(", steps)
                    elif kind == "faults":
                        stem = re.sub(r"_(answer|request)$", "_{what}", rest)
                        self.assertTrue(rest in scenarios or f'"{rest}"' in steps or f'"{stem}"' in steps)
                    elif kind == "simulate":
                        self.assertRegex(simulate, rf"(?m)^//   {rest} |\"{rest}\"")
                    elif kind == "model":
                        self.assertIn(rest, model)
                    else:
                        self.assertTrue(tuple(name.split(".")) in cpp | python, "there is no such test")

    def test_every_arbiter_can_lose_a_request_and_an_answer(self):
        points = set(re.findall(r'"(arbiter\.\w+)"', read("ckpt/fail_point.h")))
        self.assertTrue(points)
        for source in ("arbiter/file_arbiter.cc", "arbiter/etcd_arbiter.cc"):
            self.assertEqual(set(re.findall(r'fail_point_error\("([\w.]+)"\)', read(source))), points, source)


if __name__ == "__main__":
    unittest.main()
