# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Judges what is on a guest's disk against what it acknowledged. Pure: bytes and rows in, findings out.

`acknowledged` is {number: id}. Every acknowledged entry must be there, whole, under its number; behind the
last one there may be more, that nobody was told of, and at the very end the piece of a record.
tests/guest_service/ledger.h says what a record is.
"""

import struct

from judge import FNV_START, MASK, fnv1a

RECORD_BYTES = 200
WORDS = RECORD_BYTES // 8


def make_record(number, ident):
    words = [number, ident] + [(number * 0x9E3779B97F4A7C15 + word) & MASK for word in range(2, WORDS - 1)]
    body = struct.pack(f"<{WORDS - 1}Q", *words)
    return body + struct.pack("<Q", fnv1a(FNV_START, body))


def ids_in(data):
    """The ids of the whole records from the beginning on, up to the first that is none."""
    ids = []
    for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
        record = data[at:at + RECORD_BYTES]
        if record != make_record(len(ids) + 1, int.from_bytes(record[8:16], "little")):
            break
        ids.append(int.from_bytes(record[8:16], "little"))
    return ids


def _compare(found, acknowledged):
    """`found` is {number: id}."""
    lost = sorted(number for number, ident in acknowledged.items() if found.get(number) != ident)
    return {"entries": len(found), "acknowledged": len(acknowledged), "lost": len(lost),
            "faults": [f"{number}: acknowledged {acknowledged[number]}, on the disk {found.get(number)}"
                       for number in lost[:8]]}


def judge_records(data, acknowledged):
    ids = ids_in(data)
    verdict = _compare(dict(enumerate(ids, 1)), acknowledged)
    verdict["torn_bytes"] = len(data) - len(ids) * RECORD_BYTES
    return verdict


def judge_rows(rows, acknowledged):
    """Rows of (number, id), in order; numbers have no gap."""
    verdict = _compare(dict(rows), acknowledged)
    if [number for number, _ in rows] != list(range(1, len(rows) + 1)):
        verdict["faults"].append("the rows' numbers have gaps")
    return verdict
