#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Runs libFuzzer programs that are built already and tells what they found. scripts/fuzz.sh builds them.

Inputs that reached something new are kept in BUILD/corpus/TARGET and used again by the next run. An input
that broke something is kept in BUILD/findings, and its path is told. Executions are counted for each second
of processor time, so that what else the machine does is no part of it."""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SUFFIX = "_fuzz"
SEED_GROWTH = 2        # an input becomes so many times as long as the longest seed, within the bounds
MIN_INPUT_BYTES, MAX_INPUT_BYTES = 1024, 8192
INPUT_SECONDS = 20     # one input that takes longer is a finding
MALLOC_LIMIT_MB = 64   # one allocation, whatever a length claims
RSS_LIMIT_MB = 1024
# Freed memory is kept from use for a while, to find late readers; more of it costs the processor's cache.
# Where memory came from is told when a finding is run again: without these options.
ASAN = "quarantine_size_mb=1:thread_local_quarantine_size_kb=64:malloc_context_size=0:max_malloc_fill_size=0"
STAT = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)
COVERED = re.compile(r"\bcov: (\d+)")
REPRODUCER = re.compile(r"Test unit written to (\S+)")
REASON = re.compile(r"^(?:==\d+==\s*ERROR: .*|.*runtime error: .*|.*assertion.*failed.*|.*bug:.*)$",
                    re.MULTILINE | re.IGNORECASE)


def built(programs):
    return sorted(name[:-len(SUFFIX)] for name in os.listdir(programs) if name.endswith(SUFFIX))


class Run:
    """One target's run: what it was, and what came of it."""

    def __init__(self, build, unit, options):
        self.unit, self.options = unit, options
        self.program = os.path.join(build, "fuzz", unit + SUFFIX)
        self.corpus = os.path.join(build, "corpus", unit)
        self.seeds = os.path.join(build, "seeds", unit)
        self.findings = os.path.join(build, "findings")
        self.log = os.path.join(build, "findings", unit + ".log")
        self.result = {}
        self.reproducer, self.reason = None, None

    def max_input_bytes(self):
        longest = max(entry.stat().st_size for entry in os.scandir(self.seeds))
        return min(max(SEED_GROWTH * longest, MIN_INPUT_BYTES), MAX_INPUT_BYTES)

    def command(self):
        options = self.options
        length = [f"-runs={options.runs}"] if options.runs else [f"-max_total_time={options.seconds}"]
        words = [f"-dict={self.seeds}.dict"] if os.path.getsize(self.seeds + ".dict") else []
        return [self.program, *length, *words, f"-max_len={self.max_input_bytes()}",
                f"-timeout={INPUT_SECONDS}", f"-malloc_limit_mb={MALLOC_LIMIT_MB}",
                f"-rss_limit_mb={RSS_LIMIT_MB}", f"-seed={options.seed}", "-reload=0",
                f"-artifact_prefix={self.findings}/{self.unit}-", "-print_final_stats=1", self.corpus,
                self.seeds]

    def __call__(self):
        for folder in (self.corpus, self.findings, self.seeds):
            os.makedirs(folder, exist_ok=True)
        subprocess.run([self.program, f"--seeds={self.seeds}"], check=True)
        with open(self.log, "w+", encoding="utf-8", errors="replace") as log:
            child = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     env={"ASAN_OPTIONS": ASAN, **os.environ})
            _, code, used = os.wait4(child.pid, 0)
            child.returncode = code
            log.seek(0)
            text = log.read()
        stats = {name: int(value) for name, value in STAT.findall(text)}
        covered = COVERED.findall(text)
        executions = stats.get("number_of_executed_units", 0)
        self.result = {"executions": executions,
                       "per_second": round(executions / max(0.01, used.ru_utime + used.ru_stime)),
                       "findings": 1 if code else 0,
                       "coverage_edges": int(covered[-1]) if covered else 0}
        if code:
            found, reason = REPRODUCER.search(text), REASON.search(text)
            self.reproducer = found.group(1) if found else self.log
            self.reason = reason.group(0).strip() if reason else f"wait status {code}; see {self.log}"
        return self


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "fuzz"), help="build folder")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--runs", type=int, help="executions of each target")
    length.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--only", action="append", metavar="TARGET", help="may be given more than once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at once (all processors)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutator; 0: another one each time")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


def main():
    options = parse()
    units = built(os.path.join(options.build, "fuzz"))
    unknown = sorted(set(options.only or []) - set(units))
    if unknown:
        sys.exit(f"fuzz: no such target: {', '.join(unknown)}; there are: {', '.join(units)}")
    print(f"{'target':14} {'executions':>12} {'per second':>11} {'edges':>7}  findings", file=sys.stderr)
    runs = []
    with concurrent.futures.ThreadPoolExecutor(max(1, options.jobs)) as pool:
        started = [pool.submit(Run(options.build, unit, options)) for unit in options.only or units]
        for done in concurrent.futures.as_completed(started):
            run = done.result()
            runs.append(run)
            told = run.result
            print(f"{run.unit:14} {told['executions']:12} {told['per_second']:11} {told['coverage_edges']:7} "
                  f" {told['findings'] or 'none'}", file=sys.stderr, flush=True)
    found = [run for run in runs if run.reproducer]
    for run in found:
        print(f"fuzz: {run.unit}: {run.reason}\n  {run.program} {run.reproducer}", file=sys.stderr)
    if options.json:
        runs.sort(key=lambda run: run.unit)
        targets = {run.unit: run.result for run in runs}
        print(json.dumps({"targets": targets, "findings": len(found)}))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
