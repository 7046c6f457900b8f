#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Measures the NBD server against nbdkit's file plugin and qemu-nbd: the same file, through fio's nbd engine.

  bench/nbd.py [--seconds S] [--rounds N] [--megabytes M] [--folder FOLDER]... [--only PATTERN,...] [--json]

The servers take turns, in another order each round, so that what else the machine does falls on all of
them. Prints for each folder (of a file system: /dev/shm and /var/tmp by default) and pattern the medians of
N rounds and how many times as much as the others ours does; with --json the last line is the same as an
object. Needs fio, nbdkit and qemu-nbd, and build/release/tests/nbd_serve (REMUSD_BUILD names another build).
Exits 0 when everything ran, whatever the figures are."""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.environ.get("REMUSD_BUILD", os.path.join(ROOT, "build", "release"))
SERVERS = ("remusd", "nbdkit", "qemu-nbd")
WANTED = {"nbdkit": 1.0, "qemu-nbd": 0.9}  # ours is at least so many times theirs
# What fio calls it, how much at once, how many at once, and whether requests or bytes count.
PATTERNS = {"randread_4k": ("randread", "4k", 16, "iops"), "randwrite_4k": ("randwrite", "4k", 16, "iops"),
            "read_1m": ("read", "1m", 16, "bytes"), "write_1m": ("write", "1m", 16, "bytes")}
PATIENCE_S = 20


def command(server, path, at):
    if server == "remusd":
        return [os.path.join(BUILD, "tests", "nbd_serve"), path, at]
    if server == "nbdkit":
        return ["nbdkit", "--foreground", "--exit-with-parent", "-U", at, "file", path]
    return ["qemu-nbd", "--persistent", "--shared=16", "-f", "raw", "-k", at, path]


class Serving:
    """One server of one file, ready to be connected to."""

    def __init__(self, server, path, at):
        self.at = at
        self.process = subprocess.Popen(command(server, path, at), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)

    def __enter__(self):
        end = time.monotonic() + PATIENCE_S
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(self.at) == 0 and probe.recv(8) == b"NBDMAGIC":
                    return self
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"nbd: {self.process.args[0]} does not serve")
            time.sleep(0.01)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        if os.path.exists(self.at):
            os.unlink(self.at)


def measure(at, pattern, seconds, megabytes):
    kind, block, depth, counted = PATTERNS[pattern]
    done = subprocess.run(
        ["fio", "--name=nbd", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={at}", f"--rw={kind}",
         f"--bs={block}", f"--iodepth={depth}", f"--size={megabytes}m", "--time_based",
         f"--runtime={seconds * 1000:.0f}ms", "--ramp_time=300ms", "--thread", "--randrepeat=0",
         "--norandommap", "--output-format=json"],
        capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    side = job["read" if "read" in kind else "write"]
    return side["iops"] if counted == "iops" else side["bw_bytes"]


def run(folder, options):
    """{pattern: {server: [a figure each round]}}"""
    figures = {pattern: {server: [] for server in SERVERS} for pattern in options.only}
    with tempfile.TemporaryDirectory(dir=folder, prefix="nbd-bench-") as place:
        path = os.path.join(place, "disk")
        # Written once, so that no server is measured while the file gets its blocks.
        subprocess.run(["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={options.megabytes}",
                        "status=none"], check=True)
        os.sync()
        for number in range(options.rounds):
            for pattern in options.only:
                turn = number % len(SERVERS)
                for server in (*SERVERS[turn:], *SERVERS[:turn]):
                    with Serving(server, path, os.path.join(place, server)) as serving:
                        figures[pattern][server].append(
                            measure(serving.at, pattern, options.seconds, options.megabytes))
    return figures


def judge(rounds):
    """The medians, and ours as a multiple of each other's: the median of the rounds' ratios."""
    result = {server: round(statistics.median(values)) for server, values in rounds.items()}
    for other, wanted in WANTED.items():
        ratios = [ours / theirs for ours, theirs in zip(rounds["remusd"], rounds[other])]
        result[f"to_{other}"] = round(statistics.median(ratios), 3)
        result[f"holds_{other}"] = result[f"to_{other}"] >= wanted
    return result


def shown(pattern, value):
    return f"{value / 1e3:9.1f} k/s" if PATTERNS[pattern][3] == "iops" else f"{value / 2**20:7.0f} MiB/s"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--folder", action="append")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PATTERNS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    missing = [tool for tool in ("fio", "nbdkit", "qemu-nbd") if not shutil.which(tool)]
    unknown = set(options.only) - set(PATTERNS)
    if missing or unknown:
        sys.exit(f"nbd: there is no {', '.join(missing or sorted(unknown))}")
    result = {}
    for folder in options.folder or ["/dev/shm", "/var/tmp"]:
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True,
                              check=True)
        print(f"{folder} ({kind.stdout.strip()}), {options.rounds} rounds of {options.seconds:g} s\n"
              f"{'pattern':14}" + "".join(f"{server:>14}" for server in SERVERS)
              + "   to nbdkit   to qemu-nbd")
        result[folder] = {}
        for pattern, rounds in run(folder, options).items():
            told = result[folder][pattern] = judge(rounds)
            print(f"{pattern:14}" + "".join(f"{shown(pattern, told[server]):>14}" for server in SERVERS)
                  + f"{told['to_nbdkit']:12.2f}{told['to_qemu-nbd']:14.2f}", flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
