# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The soak behind scripts/soak.sh: failover after failover, each of a fresh pair at a random moment; or one
pair whose guest is handed back and forth."""

import argparse
import json
import os
import random
import statistics
import sys
import time

from failover import LEDGERS, add_guest_options, count, one_round, parse_guest_options
from switchover import back_and_forth

EARLIEST_S, LATEST_S = 0.3, 2.5


def parse():
    parser = argparse.ArgumentParser(prog="soak.sh")
    add_guest_options(parser)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--failovers", type=count)
    kind.add_argument("--switchovers", type=count)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--death", choices=("kill", "power", "mixed"), default="mixed",
                        help="kill: SIGKILL to all; power: the cables go first; mixed: by chance")
    parser.add_argument("--exact", action="store_true",
                        help="the replica of a disk must be the committed epoch, to the byte; failovers wait")
    parser.add_argument("--reboot", action="store_true", help="the guest must come back from a reboot, too")
    parser.add_argument("--json", action="store_true")
    return parse_guest_options(parser)


def quantiles(values):
    values = sorted(values)
    return {"p50": round(statistics.median(values), 1),
            "p99": round(values[min(len(values) - 1, int(0.99 * len(values)))], 1),
            "max": round(values[-1], 1)}


def switchovers(options, stream):
    def tell(number, found):
        print(f"{number:4}/{options.switchovers} stood {found['stood_ms']:.1f} ms, "
              f"silent {found['udp_ms']:.0f} ms (UDP), {found['tcp_ms']:.0f} ms (TCP), "
              f"promote {found['promote_ms']:.1f} ms, {found['sent_again']} sent again",
              file=stream, flush=True)

    found, rounds = back_and_forth(options, options.switchovers, tell)
    for text in found["complaints"]:
        print(f"  {text}", file=stream, flush=True)
    rolled_back = found["replies_rolled_back"] + found["requests_lost_after_ack"] + found["tcp_faults"]
    print(json.dumps({"switchovers": len(rounds), "lost": found["abandoned"], "rolled_back": rolled_back,
                      "sent_again": sum(one["sent_again"] for one in rounds),
                      "pause_ms": quantiles([max(one["udp_ms"], one["tcp_ms"]) for one in rounds]),
                      "stood_ms": quantiles([one["stood_ms"] for one in rounds])}), flush=True)
    return 1 if found["complaints"] else 0


def main():
    options = parse()
    if options.switchovers:
        return switchovers(options, sys.stderr if options.json else sys.stdout)
    chance = random.Random(options.seed)
    stream = sys.stderr if options.json else sys.stdout
    print(f"soak: {options.failovers} failovers, seed {options.seed}, {options.nic}, {options.vcpus} vCPU, "
          f"{options.machine}, tracker {options.tracker}", file=stream, flush=True)
    survived = rolled_back = 0
    times = []
    for number in range(1, options.failovers + 1):
        run_for = chance.uniform(EARLIEST_S, LATEST_S)
        cut_power = {"kill": False, "power": True, "mixed": chance.random() < 0.5}[options.death]
        begun = time.monotonic()
        try:
            found = one_round(options, run_for, cut_power, options.reboot)
        except Exception as error:  # A round that cannot even be run has not survived.
            found = {"complaints": [str(error)], "failover_ms": None}
        rolled_back += any(one.get(key) for one in (found, *(found.get(name) or {} for name in LEDGERS))
                           for key in ("replies_rolled_back", "requests_lost_after_ack", "tcp_faults"))
        if found["failover_ms"] is not None:
            times.append(found["failover_ms"])
        survived += not found["complaints"]
        outcome = "; ".join(found["complaints"]) or (
            f"survived, failover {found['failover_ms']:.0f} ms, promote {found['promote_ms']:.1f} ms, "
            f"TCP silent {found['tcp_gap_ms']:.0f} ms, {found['replies']} replies audited" +
            "".join(f", {found[name]['replies']} {name}" for name in LEDGERS if name in found))
        death = "power" if cut_power else "kill "
        print(f"{number:4}/{options.failovers} {death} at {run_for:.3f} s: {outcome} "
              f"[{time.monotonic() - begun:.1f} s]", file=stream, flush=True)
    summary = {"failovers": options.failovers, "survived": survived, "rolled_back": rolled_back,
               "failover_ms": {"p50": round(statistics.median(times), 1) if times else None,
                               "max": round(max(times), 1) if times else None}}
    print(json.dumps(summary), flush=True)
    return 0 if survived == options.failovers and rolled_back == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
