#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The comparison behind scripts/bench.sh: remusd, its floors, and what people would use instead."""

import argparse
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "world"))
import engine  # noqa: E402
import figures  # noqa: E402
import peers  # noqa: E402
import scale  # noqa: E402
import svg  # noqa: E402
import workloads  # noqa: E402
from failover import count, parse_guest_options  # noqa: E402
from world import BUILD, IMAGE, ROOT  # noqa: E402

WORKLOADS = {one.name: one for one in workloads.GUEST + workloads.SERVERS}
PARTS = ("engine", "failover", "many", "large")
GROUPS = {"remusd": list(WORKLOADS), "peers": list(peers.ALL)}
BUSY_CORES = 0.2
QUICK, FULL = {"seconds": 3.0, "rounds": 2, "failovers": 3}, {"seconds": 8.0, "rounds": 3, "failovers": 8}


def names(text):
    known = {**{name: [name] for name in (*WORKLOADS, *peers.ALL, *PARTS)}, **GROUPS}
    chosen = []
    for word in text.split(","):
        if word not in known:
            raise argparse.ArgumentTypeError(f"unknown name '{word}'; known: {', '.join(known)}")
        chosen += known[word]
    return chosen


def parse():
    parser = argparse.ArgumentParser(prog="bench.sh")
    parser.add_argument("--quick", action="store_true", help="shorter stretches, without the rarer parts")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--only", type=names, metavar="NAME,...",
                        help=f"of {', '.join((*GROUPS, *PARTS))}, or single workloads and peers")
    parser.add_argument("--seconds", type=float, help="length of one stretch")
    parser.add_argument("--rounds", type=count, help="unprotected and protected stretches of each workload")
    parser.add_argument("--failovers", type=count)
    parser.add_argument("--latency-target", default="2ms", metavar="D", help="for kv_latency_target")
    parser.add_argument("--max-slowdown", default="30%", metavar="P", help="for kv_latency_target")
    parser.add_argument("--out", default=os.path.join(ROOT, "build", "bench"), metavar="FOLDER")
    options = parse_guest_options(parser)
    for field, value in (QUICK if options.quick else FULL).items():
        if getattr(options, field) is None:
            setattr(options, field, value)
    if options.only is None:
        options.only = [name for name, one in WORKLOADS.items() if one.quick or not options.quick]
        options.only += [*peers.ALL, "engine", "failover"] + ([] if options.quick else ["many", "large"])
    return options


def machine():
    """What the figures were taken on, and how many of its cores were busy with something else before."""
    def used():
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(word) for word in file.readline().split()[1:9]]
        return sum(fields) - fields[3] - fields[4]  # all but idle and waiting

    before, begun = used(), time.monotonic()
    time.sleep(1)
    busy = (used() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
    return {"cpus": os.cpu_count(), "kernel": os.uname().release, "busy_cores_before": busy}


def floor_of(measured):
    """The floor under the load that matters most, of those that ran."""
    for name in ("dirty_8k", "idle", *measured):
        floor = figures.at(measured, f"{name}.floor_pause_ms")
        if floor:
            return {"pause_ms": floor, "under": name}
    return {"pause_ms": {"p50": None, "p99": None}}


def measure(options, tell):
    """Every part that was chosen; one that fails is told in `errors` and costs no other."""
    result, errors = {"machine": machine()}, {}
    if result["machine"]["busy_cores_before"] > BUSY_CORES:
        tell(f"{result['machine']['busy_cores_before']:.1f} cores are busy with something else: it will show")

    def part(name, run):
        if name not in options.only:
            return
        tell(f"{name}")
        try:
            result[name] = run()
        except Exception as error:  # pylint: disable=broad-except
            errors[name] = f"{type(error).__name__}: {error}"
            tell(f"  {errors[name]}")

    chosen = [name for name in options.only if name in WORKLOADS]
    if chosen:
        tell("remusd, unprotected and protected in turn")
        result["remusd"], failed = workloads.measure(chosen, options, tell)
        errors.update(failed)
        result["floor"] = floor_of(result["remusd"])
    chosen = [name for name in options.only if name in peers.ALL]
    if chosen:
        tell("peers")
        result["peers"], failed = peers.measure(chosen, IMAGE, options, tell)
        errors.update(failed)
    part("engine", lambda: engine.measure(BUILD, tell))
    part("failover", lambda: workloads.failovers(options.failovers, tell))
    part("many", lambda: scale.many(options, tell))
    part("large", lambda: scale.large(options, tell))
    figures.complete(result)
    for name, error in errors.items():
        for group in ("remusd", "peers"):
            if name in result[group]:
                result[group][name]["note"] = f"not measured: {error.splitlines()[0]}"
    if errors:
        result["errors"] = errors
    return result


def main():
    options = parse()
    begun = time.monotonic()

    def tell(text):
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    result = measure(options, tell)
    result["seconds"] = time.monotonic() - begun
    result["wanted"] = [{"what": text, "measured": value, "holds": holds}
                        for text, value, holds in figures.wanted(result)]
    result = figures.rounded(result)
    os.makedirs(options.out, exist_ok=True)
    line = json.dumps(result)
    with open(os.path.join(options.out, "bench.json"), "w", encoding="utf-8") as file:
        file.write(line + "\n")
    for name, text in svg.charts(result).items():
        with open(os.path.join(options.out, f"{name}.svg"), "w", encoding="utf-8") as file:
            file.write(text)
    print(figures.report(result))
    print(f"\nCharts and bench.json in {os.path.relpath(options.out)}; {result['seconds']:.0f} s")
    if options.json:
        print(line)
    return 1 if "errors" in result else 0


if __name__ == "__main__":
    sys.exit(main())
