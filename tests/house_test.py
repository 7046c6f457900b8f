#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The rules of the house that a machine can check. Usage: house_test.py [-v] [HouseRules.test_...]"""

import fnmatch
import os
import re
import subprocess
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LICENCE = "Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0"
LINE_LIMIT = 110
# About 150 and 500 are wanted; a tenth is to spare, and tests with their header-only doubles may be longer.
HEADER_LINES, SOURCE_LINES, TEST_LINES = 165, 550, 600

# docs/architecture.md: what each folder may include besides itself.
MAY_INCLUDE = {
    "ckpt": set(),
    "guest": {"ckpt"},
    "netbuf": {"ckpt"},
    "disk": {"ckpt"},
    "arbiter": {"ckpt"},
    "primary": {"ckpt", "guest", "netbuf", "disk", "arbiter"},
    "backup": {"ckpt", "guest", "netbuf", "disk", "arbiter"},
    "control": {"ckpt", "guest", "netbuf", "disk", "arbiter", "primary", "backup"},
}
FOLDERS = [*MAY_INCLUDE, "tests", "bench"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def tracked():
    """Every file of the house: in the index, or new and not ignored."""
    listed = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode().split("\0")
    return sorted({name for name in names if name and os.path.isfile(os.path.join(ROOT, name))})


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


FILES = tracked()
CODE = [name for name in FILES if name.endswith((".cc", ".h"))]
SCRIPTS = [name for name in FILES if name.endswith((".py", ".sh")) or name == ".ci/run"]


class HouseRules(unittest.TestCase):
    def none(self, found, rule):
        self.assertFalse(found, "\n".join([rule, *found]))

    def test_there_is_something_to_check(self):
        for folder in MAY_INCLUDE:
            self.assertTrue(any(name.startswith(folder + "/") for name in CODE), folder)

    def test_folders_include_only_those_below_them(self):
        found = []
        for name in CODE:
            folder = name.split("/")[0]
            for included in INCLUDE.findall(read(name)):
                other = included.split("/")[0]
                if folder in MAY_INCLUDE and other != folder and other not in MAY_INCLUDE[folder]:
                    found.append(f"{name}: {included}")
        self.none(found, "includes against the direction of docs/architecture.md:")

    def test_quoted_includes_are_paths_from_the_root(self):
        found = [f"{name}: {included}" for name in CODE for included in INCLUDE.findall(read(name))
                 if not os.path.isfile(os.path.join(ROOT, included))]
        self.none(found, "quoted includes that are no file of the house:")

    def test_no_dead_files(self):
        included = {path for name in CODE for path in INCLUDE.findall(read(name))}
        found = [name for name in CODE if name.endswith(".h") and name not in included]
        for name in (name for name in CODE if name.endswith(".cc")):
            lists = os.path.dirname(name)
            while lists and not os.path.isfile(os.path.join(ROOT, lists, "CMakeLists.txt")):
                lists = os.path.dirname(lists)
            if not self.compiled(name, lists):
                found.append(name)
        self.none(found, "headers that nothing includes, sources that nothing compiles:")

    @staticmethod
    def compiled(name, lists):
        """By name, or by a GLOB, in the CMakeLists.txt next above it."""
        rules = read(os.path.join(lists, "CMakeLists.txt"))
        inside = os.path.relpath(name, lists)
        if re.search(rf"[\s/(]{re.escape(inside)}[\s)]", rules):
            return True
        for globs in re.findall(r"GLOB[A-Z_]*\s+([^)]*)\)", rules):
            for pattern in globs.split():
                for folder in MAY_INCLUDE if "${folder}" in pattern else [""]:
                    parts = pattern.replace("${folder}", folder).split("/"), inside.split("/")
                    if len(parts[0]) == len(parts[1]) and all(map(fnmatch.fnmatch, parts[1], parts[0])):
                        return True
        return False

    def test_every_file_has_its_licence_line(self):
        found = [name for name in CODE + SCRIPTS if LICENCE not in "\n".join(read(name).splitlines()[:2])]
        self.none(found, "without the licence line among the first two:")

    def test_lines_are_not_too_long(self):
        found = []
        for name in CODE + SCRIPTS + [name for name in FILES if name.endswith("CMakeLists.txt")]:
            for number, line in enumerate(read(name).splitlines(), 1):
                if len(line) > LINE_LIMIT:
                    found.append(f"{name}:{number}: {len(line)} characters")
        self.none(found, f"lines longer than {LINE_LIMIT}:")

    def test_no_trailing_blanks_or_tabs(self):
        found = []
        for name in CODE + SCRIPTS:
            text = read(name)
            if not text.endswith("\n"):
                found.append(f"{name}: no newline at the end")
            found += [f"{name}:{number}" for number, line in enumerate(text.splitlines(), 1)
                      if line != line.rstrip() or "\t" in line]
        self.none(found, "trailing blanks or tabs:")

    def test_files_are_not_too_long(self):
        found = []
        for name in CODE:
            lines, limit = read(name).count("\n"), HEADER_LINES if name.endswith(".h") else SOURCE_LINES
            if name.startswith("tests/"):
                limit = TEST_LINES
            if lines > limit:
                found.append(f"{name}: {lines} lines, limit {limit}: look for the second job in it")
        self.none(found, "files too long:")

    def test_headers_are_included_once(self):
        found = [name for name in CODE if name.endswith(".h") and "#pragma once" not in read(name)]
        self.none(found, "headers without #pragma once:")

    def test_sources_are_formatted(self):
        done = subprocess.run(["clang-format", "--dry-run", *CODE], cwd=ROOT, capture_output=True, text=True,
                              check=False)
        found = sorted({line.split(":")[0] for line in done.stderr.splitlines() if "clang-format" in line})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.none(found, "not as .clang-format says (clang-format -i):")

    def test_scripts_parse_and_can_be_run(self):
        found = []
        for name in SCRIPTS:
            path = os.path.join(ROOT, name)
            if name.endswith(".py"):
                compile(read(name), name, "exec")
            elif subprocess.run(["bash", "-n", path], check=False).returncode != 0:
                found.append(f"{name}: does not parse")
            if read(name).startswith("#!") and not os.access(path, os.X_OK):
                found.append(f"{name}: has a #! line, but is not executable")
        self.none(found, "scripts:")

    def test_package_list_is_well_formed(self):
        lines = [line for line in read("scripts/packages.txt").splitlines() if not line.startswith("#")]
        self.assertEqual(len(lines), len(set(lines)), "a package is listed twice")
        wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", line)]
        self.none(wrong, "no package names:")

    def test_changelog_names_the_version(self):
        version = re.search(r"project\(remusd VERSION ([0-9.]+)", read("CMakeLists.txt")).group(1)
        self.assertRegex(read("CHANGELOG.md"), rf"(?m)^## \[({re.escape(version)}|Unreleased)\]")

    def test_local_links_in_documents_lead_somewhere(self):
        found = []
        for name in (name for name in FILES if name.endswith(".md")):
            for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(name)):
                if not os.path.exists(os.path.join(ROOT, os.path.dirname(name), target)):
                    found.append(f"{name}: {target}")
        self.none(found, "links to nothing:")


if __name__ == "__main__":
    unittest.main()
