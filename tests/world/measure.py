# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""What protection costs, on one real pair: processor time, guest progress, memory, system calls.

Ratios compare two stretches of the same run, taken in turn. Behind scripts/measure.sh.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from failover import add_guest_options, boot, parse_guest_options, protect, protection
from world import World, WorldError

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid, thread=None):
    task = f"/proc/{pid}/task/{thread}/stat" if thread else f"/proc/{pid}/stat"
    with open(task, encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid):
    """What is the process's own: without the guest's memory, which it maps shared."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", file.read(), re.M))
    return (int(fields["RssAnon"]) + int(fields["RssFile"])) << 10


def threads(pid):
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8") as file:
            found.setdefault(file.read().strip(), []).append(int(task))
    return found


def daemon_pid(host):
    """`ip netns exec` becomes the daemon: no process stands between."""
    return host.daemon.pid


def set_dirty(client, rate):
    client.ask(f"load 1 {rate}")


def idle_cost(world, client, seconds):
    set_dirty(client, 0)
    client.ask("pause")
    time.sleep(1)  # The stretch before belongs to the load before.
    costs = {}
    for host in (world.a, world.b):
        costs[host.name] = -cpu_seconds(daemon_pid(host))
    begun = time.monotonic()
    time.sleep(seconds)
    span = time.monotonic() - begun
    for host in (world.a, world.b):
        costs[host.name] = (costs[host.name] + cpu_seconds(daemon_pid(host))) / span
    client.ask("continue")
    return costs


def stretch(client, seconds):
    before = client.ask("load 0 0")
    time.sleep(seconds)
    after = client.ask("load 0 0")
    span = after["asked"] - before["asked"]
    return {"dirtied_per_s": (after["dirtied"] - before["dirtied"]) / span,
            "spins_per_s": (after["spins"] - before["spins"]) / span}


def progress(world, client, rate, seconds, rounds):
    """Unprotected and protected in turn, on the wall clock."""
    set_dirty(client, rate)
    client.ask("load 3 1")  # A thread that only computes takes what is left of the processor.
    client.ask("pause")
    ratios = {"dirtied_per_s": [], "spins_per_s": []}
    for _ in range(rounds):
        world.a.must("unprotect", "vm1")
        world.a.wait_state("unprotected")
        alone = stretch(client, seconds)
        protect(world)
        guarded = stretch(client, seconds)
        for key, values in ratios.items():
            values.append(guarded[key] / alone[key])
    client.ask("load 3 0")
    client.ask("continue")
    return {key: statistics.median(values) for key, values in ratios.items()}


def system_calls(pid, thread, seconds):
    """Counts by name, from strace of one thread."""
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as trace:
        tracer = subprocess.Popen(["strace", "-q", "-p", str(thread), "-o", trace.name],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        tracer.terminate()
        tracer.wait()
        counts = {}
        for line in trace:
            name = re.match(r"(\w+)\(", line)
            if name:
                counts[name.group(1)] = counts.get(name.group(1), 0) + 1
    return counts


def memory_growth(world, seconds):
    samples = []
    end = time.monotonic() + seconds
    while True:
        samples.append({host.name: resident_bytes(daemon_pid(host)) for host in (world.a, world.b)})
        if time.monotonic() >= end:
            return samples
        time.sleep(min(5, max(0.1, end - time.monotonic())))


def main():
    parser = argparse.ArgumentParser(prog="measure.sh")
    add_guest_options(parser)
    parser.add_argument("--rate", type=int, default=8000, help="pages a second for the progress figure")
    parser.add_argument("--seconds", type=float, default=6, help="length of one stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-seconds", type=float, default=30, help="how long to watch memory")
    parser.add_argument("--json", action="store_true")
    options = parse_guest_options(parser)
    with World(protection(options)) as world:
        client = boot(world, options)
        protect(world)
        pid = daemon_pid(world.a)
        result = {"threads": {name: len(ids) for name, ids in threads(pid).items()}}
        result["idle_cpu_cores"] = idle_cost(world, client, options.seconds)
        result["progress_ratio"] = progress(world, client, options.rate, options.seconds, options.rounds)
        result["status"] = {key: world.a.status()[key] for key in ("pause_ms", "commit_ms", "dirty_pages")}
        result["ship_system_calls"] = system_calls(pid, threads(pid)["ship"][0], 3)
        samples = memory_growth(world, options.memory_seconds)
        result["resident_bytes"] = {
            name: {"first": samples[min(1, len(samples) - 1)][name],
                   "half": samples[len(samples) // 2][name], "last": samples[-1][name],
                   "max": max(sample[name] for sample in samples)} for name in ("a", "b")}
        result["state_at_end"] = world.a.status()["state"]
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    try:
        main()
    except WorldError as failure:
        print(f"measure.sh: {failure}", file=sys.stderr)
        sys.exit(1)
