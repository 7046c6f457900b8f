#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Checks a test guest's disk that nobody uses now: the file system, and what the guest acknowledged.

    disk_check.py IMAGE ACKNOWLEDGED

IMAGE is not changed: a copy gets its journal replayed, as a kernel that mounts it would do, and must then
be clean. ACKNOWLEDGED is what client.py wrote down. Prints one JSON object; exit 1 when something was lost
or is not clean.
"""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile

from disk_judge import judge_records, judge_rows


def _run(*command, good=(0,)):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    output = done.stdout.decode(errors="replace").strip()
    if done.returncode not in good:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {output}")
    return done.returncode, output


def _file(image, name, target):
    """Copies a file out of the image; an absent one is empty."""
    _run("debugfs", "-R", f"dump {name} {target}", image)
    with open(target, "ab+") as file:
        file.seek(0)
        return file.read()


def copy_sparse(source, target):
    _run("cp", "--sparse=always", "--reflink=auto", source, target)


def check(image, acknowledged):
    """`acknowledged`: {"records": {number: id}, "database": {number: id}}. `ok` says whether all is well."""
    with tempfile.TemporaryDirectory(prefix="remusd-disk-") as folder:
        copy, base = os.path.join(folder, "disk.raw"), os.path.join(folder, "ledger.db")
        copy_sparse(image, copy)
        _run("e2fsck", "-E", "journal_only", "-p", copy, good=(0, 1))
        code, output = _run("e2fsck", "-fn", copy, good=range(256))
        found = {"clean": code == 0}
        if code != 0:
            found["e2fsck"] = output.splitlines()[-20:]
        data = _file(copy, "/data/records", os.path.join(folder, "records"))
        found["records"] = judge_records(data, acknowledged.get("records", {}))
        rows, integrity = [], "no database"
        if _file(copy, "/data/ledger.db", base):
            wal = _file(copy, "/data/ledger.db-wal", base + "-wal")
            if not wal:
                os.unlink(base + "-wal")
            try:
                database = sqlite3.connect(base)
                integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
                rows = [(number, int(ident)) for number, ident in
                        database.execute("SELECT number, id FROM ledger ORDER BY number")]
                database.close()
            except sqlite3.Error as error:
                integrity = str(error)
        found["database"] = judge_rows(rows, acknowledged.get("database", {}))
        found["database"]["integrity"] = integrity
    found["ok"] = found["clean"] and integrity == "ok" and not any(
        found[name]["lost"] or found[name]["faults"] for name in ("records", "database"))
    return found


def load_acknowledged(path):
    with open(path, encoding="ascii") as file:
        return {name: {int(number): ident for number, ident in answers.items()}
                for name, answers in json.load(file).items()}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = check(sys.argv[1], load_acknowledged(sys.argv[2]))
    print(json.dumps(found, indent=1))
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
