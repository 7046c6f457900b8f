#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Real faults on a real pair, again and again; behind scripts/faults.sh, which says how to call it."""

import argparse
import json
import os
import random
import shutil
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "world"))
import guests  # noqa: E402,F401
import hosts  # noqa: E402,F401
import network  # noqa: E402,F401
import operators  # noqa: E402,F401
import steps  # noqa: E402
from arbiters import ARBITERS  # noqa: E402
from catalogue import SCENARIOS  # noqa: E402
from scene import ROOT, Scene  # noqa: E402
from world import BUILD, WorldError  # noqa: E402

COUNTS = ("lost", "rolled_back", "heard_twice")


def parse():
    parser = argparse.ArgumentParser(prog="faults.sh")
    parser.add_argument("--fault", default="", help="numbers, as in 17,18; all when absent")
    parser.add_argument("--only", default="", help="scenarios by name, as in partition,stopped_at_backup.won")
    parser.add_argument("--rounds", type=int, default=1, help="of each scenario")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--arbiter", choices=ARBITERS, default="file",
                        help="a file, etcd with one member, a cluster of three")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.numbers = {int(word) for word in options.fault.split(",") if word}
    options.names = {word for word in options.only.split(",") if word}
    return options


def programs():
    """The daemon that ships, and one with fail points (REMUSD_FAULTS_BUILD)."""
    other = os.environ.get("REMUSD_FAULTS_BUILD", os.path.join(ROOT, "build", "asan"))
    return {False: os.path.join(BUILD, "remusd"), True: os.path.join(other, "remusd")}


def select(options):
    chosen = [entry for entry in SCENARIOS
              if (not options.numbers or options.numbers & set(entry.numbers)) and
              (not options.names or entry.name in options.names)]
    known = {entry.name for entry in SCENARIOS}
    if options.names - known:
        sys.exit(f"faults.sh: no such scenario: {', '.join(sorted(options.names - known))}")
    if not chosen:
        sys.exit("faults.sh: no scenario does that fault (see --list and docs/faults.md)")
    if not options.list and not any(options.arbiter in entry.arbiters for entry in chosen):
        sys.exit(f"faults.sh: not applicable with --arbiter {options.arbiter}: "
                 f"{', '.join(entry.name for entry in chosen)}")
    # Those that share a kind of world follow each other.
    return sorted(chosen, key=lambda entry: (entry.needs.key(), SCENARIOS.index(entry)))


def numbers_of(entry):
    return ",".join(map(str, entry.numbers))


class Runner:
    def __init__(self, options):
        self.options, self.programs = options, programs()
        self.stream = sys.stderr if options.json else sys.stdout
        self.scene = None
        self.faults = {}  # number -> counts
        self.rounds = self.wrong = self.number = 0
        self.not_applicable = []
        self.total = dict.fromkeys(COUNTS, 0)

    def say(self, text):
        print(text, file=self.stream, flush=True)

    def run(self, chosen):
        for entry in chosen:
            if self.options.arbiter not in entry.arbiters:
                self.not_applicable.append(entry.name)
                self.say(f"n/a    {numbers_of(entry):8} {entry.name}: not with {self.options.arbiter}")
                continue
            for number in range(self.options.rounds):
                self.round(entry, number)
        self.leave()

    def leave(self):
        if self.scene is not None:
            self.scene.close()
        self.scene = None

    def round(self, entry, number):
        # A round has a seed of its own, so that it can be repeated without those before it.
        chance = random.Random(f"{self.options.seed} {entry.name} {number}")
        begun = time.monotonic()
        found = {**dict.fromkeys(COUNTS, 0), "heard": "nobody", "wrong": []}
        try:
            if self.scene is None or self.scene.needs.key() != entry.needs.key():
                self.leave()
                self.scene = Scene(entry.needs, self.programs, chance, self.options.arbiter)
                self.scene.open()
            self.scene.chance, self.scene.notes = chance, []
            self.scene.ears.ask()
            begin, end, expect = entry.act(self.scene)
            found = self.scene.judge(begin, end, expect)
        except Exception as error:
            found["wrong"].append(str(error) if isinstance(error, WorldError) else traceback.format_exc())
        if found["wrong"]:
            found["wrong"].append(f"logs in {self.keep_logs(entry, number)}")
        took, notes = time.monotonic() - begun, self.scene.notes if self.scene is not None else []
        try:
            if found["wrong"]:
                raise WorldError("a world of its own for the next round")
            self.scene.repair()
        except Exception as error:
            if not found["wrong"] and found["heard"] != "nobody":
                found["wrong"] = [f"could not be protected again: {error}",
                                  f"logs in {self.keep_logs(entry, number)}"]
            try:
                self.leave()
            except Exception as trouble:
                found["wrong"].append(f"cleaning up: {trouble}")
                self.scene = None
        self.count(entry, found)
        outcome = "; ".join(found["wrong"]) if found["wrong"] else f"{found['heard']} is heard"
        if found.get("silent_ms") is not None:
            outcome += f", after {found['silent_ms']:.0f} ms of silence"
        outcome += "".join(f", {note}" for note in notes)
        self.say(f"{'FAILED' if found['wrong'] else 'ok    '} {numbers_of(entry):8} {entry.name} "
                 f"{number + 1}/{self.options.rounds}: {outcome} "
                 f"[{took:.1f} s, {time.monotonic() - begun - took:.1f} s repair]")

    def count(self, entry, found):
        self.rounds += 1
        self.wrong += bool(found["wrong"])
        for key in COUNTS:
            self.total[key] += found[key]
        for fault in entry.numbers:
            counts = self.faults.setdefault(fault, {"rounds": 0, "one_heard": 0, "nobody_heard": 0,
                                                    **dict.fromkeys(COUNTS, 0), "failed": 0})
            counts["rounds"] += 1
            counts["one_heard"] += found["heard"] != "nobody" and not found["heard_twice"]
            counts["nobody_heard"] += found["heard"] == "nobody"
            counts["failed"] += bool(found["wrong"])
            for key in COUNTS:
                counts[key] += found[key]

    def keep_logs(self, entry, number):
        if self.scene is None or self.scene.world is None:
            return "nowhere"
        target = os.path.join(ROOT, "build", "fault-logs", f"{self.options.seed}-{entry.name}-{number}")
        os.makedirs(target, exist_ok=True)
        for host in self.scene.world.hosts.values():
            if os.path.exists(host.log):
                shutil.copy(host.log, os.path.join(target, f"{host.name}.log"))
        for server in self.scene.world.servers:
            for name in server.logs():
                shutil.copy(name, target)
        return os.path.relpath(target, ROOT)

    def summary(self):
        return {"rounds": self.rounds, "seed": self.options.seed, "failed": self.wrong,
                "arbiter": self.options.arbiter, "not_applicable": self.not_applicable,
                "faults": {str(key): self.faults[key] for key in sorted(self.faults)}, **self.total}


def main():
    options = parse()
    if options.check_arguments:
        return 0
    unreached = steps.add_scenarios(programs()[True])
    chosen = select(options)
    if options.list:
        for entry in chosen:
            without = "" if options.arbiter in entry.arbiters else f"not with {options.arbiter}: "
            words = " ".join((entry.act.__doc__ or "").split())
            print(f"{numbers_of(entry):8} {entry.name}: {without}{words}")
        return 0
    runner = Runner(options)
    runner.say(f"faults: {len(chosen)} scenarios, {options.rounds} rounds each, seed {options.seed}, "
               f"arbiter {options.arbiter}")
    if unreached:
        runner.say(f"FAILED: no scenario leads to {', '.join(unreached)}")
    runner.run(chosen)
    print(json.dumps(runner.summary()), flush=True)
    return 1 if runner.wrong or unreached or any(runner.total.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
