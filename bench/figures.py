# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""What is computed from measurements: quantiles, ratios, what is wanted, the table. Pure.

A figure that was not measured is None, with a note; nothing is estimated in its place.
"""

import math
import re
import statistics

WORKLOADS = ("idle", "dirty_1k", "dirty_8k", "dirty_40k", "kv", "kv_latency_target", "web", "cpu",
             "incompressible", "dirty_8k_5ms")
PEERS = ("migrate_ignore_shared", "migrate_live", "snapshot_save", "background_snapshot", "colo_unix")
QUANTILE_FIELDS = {"pause_ms": ("p50", "p99", "max"), "request_ms": ("p50", "p99"),
                   "unprotected_request_ms": ("p50", "p99"), "commit_ms": ("p50", "p99")}
PLAIN_FIELDS = ("epoch_ms", "progress_ratio", "throughput_ratio", "wire_ratio", "cpu_cores")


def quantile(values, share):
    """The nearest-rank quantile, as the daemon computes its own; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def quantiles(values):
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": max(values, default=None)}


def middle(values):
    """The median of what was measured."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(part, whole):
    return part / whole if part is not None and whole else None


def middles(rounds):
    """Objects of the same shape, one a round, into one with the median of each field."""
    first = next((one for one in rounds if one is not None), None)
    if first is None:
        return None
    if isinstance(first, dict):
        keys = dict.fromkeys(key for one in rounds if one for key in one)
        return {key: middles([one.get(key) for one in rounds if one]) for key in keys}
    if isinstance(first, (str, bool)):
        return first
    return middle(rounds)


def means(a, b):
    """Two objects of the same shape into one with the mean of each field."""
    if isinstance(a, dict):
        return {key: means(a[key], b[key]) for key in a}
    return (a + b) / 2 if a is not None and b is not None else None


SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")


def parse_metrics(text, vm="vm1"):
    """The Prometheus text into {(name, labels without vm, as a sorted tuple): value}, for one guest."""
    found = {}
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if not match:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match.group(2) or ""))
        if labels.pop("vm", vm) == vm:
            found[match.group(1), tuple(sorted(labels.items()))] = float(match.group(3))
    return found


# Phases that are known, as they follow each other; others come last.
IN_ORDER = ("stop", "scan", "copy", "device", "save", "resume", "encode", "wire", "ack")


def phases(before, after):
    """Mean and (by its buckets) p50 and p99 in ms of each phase, between two scrapes."""
    name, found = "remusd_epoch_phase_seconds", {}
    order = {phase: number for number, phase in enumerate(IN_ORDER)}
    counts = sorted(((key, value) for key, value in after.items() if key[0] == name + "_count"),
                    key=lambda one: order.get(dict(one[0][1])["phase"], len(order)))
    for (series, labels), value in counts:
        count = value - before.get((series, labels), 0)
        if count <= 0:
            continue
        total = after[name + "_sum", labels] - before.get((name + "_sum", labels), 0)
        buckets = []
        for (other, its), upto in after.items():
            its = dict(its)
            edge = its.pop("le", None)
            if other == name + "_bucket" and tuple(sorted(its.items())) == labels:
                key = tuple(sorted([*its.items(), ("le", edge)]))
                buckets.append((float(edge), upto - before.get((other, key), 0)))
        found[dict(labels)["phase"]] = {"mean": 1e3 * total / count,
                                        "p50": scale(bucket_quantile(sorted(buckets), 0.5)),
                                        "p99": scale(bucket_quantile(sorted(buckets), 0.99))}
    return found


def scale(seconds):
    return None if seconds is None else 1e3 * seconds


def bucket_quantile(buckets, share):
    """From cumulative (edge, count) pairs, linear inside a bucket; None when it lies past the last edge."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    rank, low, below = share * buckets[-1][1], 0.0, 0.0
    for edge, count in buckets:
        if count >= rank:
            if math.isinf(edge):
                return None
            return low + (edge - low) * (rank - below) / max(count - below, 1e-12)
        low, below = edge, count
    return None


def empty_workload(note=None):
    """A workload's object with nothing measured."""
    found = {field: None for field in PLAIN_FIELDS}
    found.update({field: dict.fromkeys(keys) for field, keys in QUANTILE_FIELDS.items()})
    if note:
        found["note"] = note
    return found


def empty_peer(note):
    return {"pause_ms": {"p50": None, "p99": None}, "total_ms": {"p50": None}, "note": note}


NOT_RUN = "not part of this run"


def complete(result, note=NOT_RUN):
    """Fills in what a run left out, so that the object always has the same shape."""
    result.setdefault("floor", {"pause_ms": {"p50": None, "p99": None}})
    remusd, peers = result.setdefault("remusd", {}), result.setdefault("peers", {})
    for name in WORKLOADS:
        remusd.setdefault(name, empty_workload(note))
    for one in remusd.values():
        for field, value in empty_workload().items():
            if isinstance(value, dict):
                one[field] = {**value, **(one.get(field) or {})}
            else:
                one.setdefault(field, value)
    for name in PEERS:
        peers.setdefault(name, empty_peer(note))
    engine = result.setdefault("engine", {})
    for field in ("sim_epochs_per_s", "delta_encode_gb_s", "lz4_gb_s", "memcpy_gb_s", "tls_commit_ratio"):
        engine.setdefault(field, None)
    engine.setdefault("scan_ms_per_gib", {})
    failover = result.setdefault("failover", {})
    for field in ("promote_ms", "failover_ms"):
        failover.setdefault(field, None)
    return result


def at(result, path):
    """The value at 'a.b.c', or None."""
    for key in path.split("."):
        result = result.get(key) if isinstance(result, dict) else None
    return result


def difference(a, b):
    return a - b if a is not None and b is not None else None


def wanted(result):
    """What the project wants of these figures: (text, value, holds), holds None when not measured."""
    busy = "remusd.dirty_8k"
    floor = at(result, "floor.pause_ms.p50")
    pause50, pause99 = at(result, f"{busy}.pause_ms.p50"), at(result, f"{busy}.pause_ms.p99")
    lines = []

    def at_most(text, value, limit):
        lines.append((text, value, None if value is None else value <= limit))

    def at_least(text, value, limit):
        lines.append((text, value, None if value is None else value >= limit))

    at_most("pause p50 at 8k pages/s, of the floor's p50: <= 1.25", ratio(pause50, floor), 1.25)
    at_most("pause p99 at 8k pages/s, of the floor's p50: <= 2.5", ratio(pause99, floor), 2.5)
    at_most("pause p50, of the pause of migrate with x-ignore-shared: <= 0.6",
            ratio(pause50, at(result, "peers.migrate_ignore_shared.pause_ms.p50")), 0.6)
    at_most("... both from QEMU's STOP to its RESUME: <= 0.6",
            ratio(at(result, f"{busy}.stop_to_resume_ms.p50"),
                  at(result, "peers.migrate_ignore_shared.stop_to_resume_ms.p50")), 0.6)
    at_most("pause p50, of a full live migrate's total: <= 0.05",
            ratio(pause50, at(result, "peers.migrate_live.total_ms.p50")), 0.05)
    at_least("guest progress at 25 ms and 8k pages/s: >= 0.95", at(result, f"{busy}.progress_ratio"), 0.95)
    at_least("guest progress at 5 ms and 8k pages/s: >= 0.75",
             at(result, "remusd.dirty_8k_5ms.progress_ratio"), 0.75)
    at_least("acknowledged epochs a second at --epoch 5ms: >= 190",
             at(result, "remusd.dirty_8k_5ms.epochs_per_s"), 190)
    at_least("acknowledged epochs a second at --epoch 2ms: >= 400",
             at(result, "remusd.dirty_8k_2ms.epochs_per_s"), 400)
    target = "remusd.kv_latency_target"
    at_most("kv median request with --latency-target, above unprotected, ms: <= 3",
            difference(at(result, f"{target}.request_ms.p50"),
                       at(result, f"{target}.unprotected_request_ms.p50")), 3)
    at_least("kv throughput, of unprotected: >= 0.7", at(result, "remusd.kv.throughput_ratio"), 0.7)
    at_least("kv throughput with --latency-target, of unprotected: >= 0.7",
             at(result, f"{target}.throughput_ratio"), 0.7)
    at_most("wire, of raw dirty bytes, kv: <= 0.15", at(result, "remusd.kv.wire_ratio"), 0.15)
    at_most("wire, of raw dirty bytes, incompressible: <= 1.02",
            at(result, "remusd.incompressible.wire_ratio"), 1.02)
    speed, by_lz4 = at(result, "engine.delta_encode_gb_s"), at(result, "engine.lz4_gb_s")
    at_least("delta encoding of sparsely changed pages, GB/s: >= 4", speed, 4)
    at_least("... of lz4's speed on the same pages: >= 3", ratio(speed, by_lz4), 3)
    at_least("the engine without a hypervisor, epochs of 100 pages and more a second: >= 2500",
             at(result, "engine.sim_epochs_per_s"), 2500)
    at_most("commit p50 with TLS between the hosts, of plain text: <= 1.15",
            at(result, "engine.tls_commit_ratio"), 1.15)
    at_most("promotion, ms: <= 10", at(result, "failover.promote_ms"), 10)
    at_most("kill to first reply, heartbeat 10 ms x 4, ms: <= 150", at(result, "failover.failover_ms"), 150)
    at_most("8 guests at 25 ms: the worst guest's epoch interval p99, ms: <= 50",
            at(result, "many.worst_interval_p99_ms"), 50)
    at_most("... while one of them dirties heavily, the others' worst, ms: <= 50",
            at(result, "many.worst_interval_p99_beside_heavy_ms"), 50)
    at_least("4 GiB guest, 1 GiB touched: failovers survived: >= 1", at(result, "large.survived"), 1)
    at_most("... its scan on one thread, ms a GiB of its memory: <= 0.4", at(result, "large.scan_ms_per_gib"),
            0.4)
    scans = at(result, "engine.scan_ms_per_gib") or {}
    at_most("scan alone on one thread, 4 GiB, 1 GiB touched, ms a GiB: <= 0.4", scans.get("4/1"), 0.4)
    at_most("... 1 GiB, all of it touched, ms a GiB: <= 0.4", scans.get("1/1"), 0.4)
    return lines


def number(value, digits=2):
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"


def table(heads, rows):
    """Columns as wide as they must be; the first to the left, the rest to the right."""
    cells = [list(heads)] + [[number(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
                     for row in cells)


def report(result):
    """The whole result as text for people."""
    parts = []
    if at(result, "machine.cpus"):
        parts.append(f"{result['machine']['cpus']} processors, Linux {result['machine']['kernel']}; "
                     f"{number(result['machine']['busy_cores_before'])} cores were busy with something else "
                     "at the beginning")
    floor = at(result, "floor.pause_ms") or {}
    parts.append(f"Floor (stop, save the device state, continue; nothing captured): pause p50 "
                 f"{number(floor.get('p50'))} ms, p99 {number(floor.get('p99'))} ms")
    rows = []
    remusd, peers = ([(name, one) for name, one in result[group].items() if one.get("note") != NOT_RUN]
                     for group in ("remusd", "peers"))
    for name, one in remusd:
        rows.append((name, one["epoch_ms"], one["pause_ms"]["p50"], one["pause_ms"]["p99"],
                     one["pause_ms"]["max"], one["commit_ms"]["p50"], one["commit_ms"]["p99"],
                     one.get("epochs_per_s"), at(one, "dirty_pages.p50"), one["wire_ratio"],
                     one["cpu_cores"], one["progress_ratio"]))
    parts.append("remusd, by workload (times in ms; wire: bytes sent / raw dirty bytes; cpu: cores of the "
                 "primary daemon;\nprogress: of an unprotected guest's)\n" +
                 table(("workload", "epoch", "pause p50", "p99", "max", "commit p50", "p99", "epochs/s",
                        "pages", "wire", "cpu", "progress"), rows))
    steps = list(dict.fromkeys(phase for _, one in remusd for phase in one.get("phases_ms") or ()))
    rows = [(name, *(at(one, f"phases_ms.{phase}.mean") for phase in steps))
            for name, one in remusd if one.get("phases_ms")]
    if rows:
        parts.append("Phases of an epoch, mean ms\n" + table(("workload", *steps), rows))
    rows = [(name, one["unprotected_request_ms"]["p50"], one["request_ms"]["p50"], one["request_ms"]["p99"],
             one.get("unprotected_throughput_per_s"), one.get("throughput_per_s"), one["throughput_ratio"])
            for name, one in remusd if one["request_ms"]["p50"] is not None]
    if rows:
        parts.append("Requests (ms and requests a second)\n" +
                     table(("workload", "alone p50", "protected p50", "p99", "alone/s", "protected/s",
                            "ratio"), rows))
    rows = [(name, one["pause_ms"]["p50"], one["pause_ms"]["p99"], one["total_ms"]["p50"], one.get("count"))
            for name, one in peers]
    parts.append("Peers: stock QEMU, the same guest, 8k pages/s (ms)\n" +
                 table(("peer", "pause p50", "p99", "total p50", "count"), rows))
    for name in ("engine", "failover", "many", "large"):
        plain = [f"{key} {number(value)}" for key, value in result.get(name, {}).items()
                 if isinstance(value, (int, float))]
        if plain:
            parts.append(f"{name}: " + ", ".join(plain))
    notes = [f"  {name}: {one['note']}"
             for group in ("remusd", "peers", "engine", "failover", "many", "large")
             for name, one in notes_of(group, result.get(group, {})) if one.get("note", NOT_RUN) != NOT_RUN]
    if notes:
        parts.append("Notes\n" + "\n".join(notes))
    words = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}
    parts.append("Wanted\n" + table(("", "measured", ""), [(text, value, words[holds])
                                                           for text, value, holds in wanted(result)]))
    return "\n\n".join(parts)


def notes_of(group, one):
    return one.items() if group in ("remusd", "peers") else [(group, one)]


def rounded(value):
    """To five digits, so that the line can be read."""
    if isinstance(value, dict):
        return {key: rounded(field) for key, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
