# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The demonstration behind scripts/demo.sh."""

import argparse
import json
import signal
import sys
import time

from failover import add_guest_options, boot, complaints, go_on, parse_guest_options, protect, protection
from world import GUEST_IP, World, WorldError

TRAFFIC_S = 10


def parse():
    parser = argparse.ArgumentParser(prog="demo.sh")
    add_guest_options(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true")
    return parse_guest_options(parser)


def rounded(value):
    """The same, with whole numbers as such and others to the microsecond."""
    if isinstance(value, dict):
        return {key: rounded(field) for key, field in value.items()}
    if isinstance(value, float):
        return int(value) if value.is_integer() else round(value, 3)
    return value


def main():
    options = parse()
    begun = time.monotonic()

    def tell(text=""):
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    def step(text):
        tell(f"\n[{time.monotonic() - begun:5.1f} s] {text}")

    with World(protection(options), keep=options.keep) as world:
        step("Two hosts and a client: three network namespaces "
             f"({world.a.ns.name}, {world.b.ns.name}, {world.client_ns.name}).")
        tell("    client --- switch --- a, b      a --- b: a cable of their own for the checkpoints")
        step(f"A daemon on each host. Host a starts vm1: unmodified Linux under stock QEMU, {options.nic}, "
             f"{options.vcpus} vCPU, {options.machine}.")
        client = boot(world, options)
        tell(f"    The client talks to the service in the guest ({GUEST_IP}): one TCP session, a message "
             "every 10 ms;\n    a UDP request every 5 ms. The guest counts them in its memory, and dirties "
             f"{options.dirty} pages/s.")

        step("The floor: stop, save the device state, continue. No tracking, no copying, no protection.")
        floor = world.a.ask("bench", "floor", "vm1", timeout=120)
        tell(f"    pause: median {floor['pause_ms']['p50']:.2f} ms, p99 {floor['pause_ms']['p99']:.2f} ms "
             f"({floor['count']} pauses)")

        step("a$ remusd protect vm1 --peer b")
        protect(world)
        tell("    Epoch 1 is acknowledged: from here on vm1 survives the loss of host a.")
        tell("    The hosts speak TLS 1.3 and know each other by certificates, made by 'remusd keys'."
             if world.tls else "    The hosts speak in plain text (--plain).")
        time.sleep(TRAFFIC_S)  # What is measured is a stretch of ordinary protection.
        status = world.a.wait_state("protected", timeout=5)
        if status["transport"] != ("tls" if world.tls else "plain"):
            raise WorldError(f"the hosts speak {status['transport']}")
        pause, commit, dirty = status["pause_ms"], status["commit_ms"], status["dirty_pages"]
        tell(f"    {status['epochs']['acked']} epochs every {status['epoch_ms']:.0f} ms; tracker "
             f"{status['tracker']}\n"
             f"    pause:  median {pause['p50']:.2f} ms, p99 {pause['p99']:.2f} ms\n"
             f"    commit: median {commit['p50']:.2f} ms, p99 {commit['p99']:.2f} ms (sealed to ack)\n"
             f"    dirty:  median {dirty['p50']:.0f} pages an epoch")

        seen = client.ask("progress")
        step(f"The client has {seen['replies']} replies over UDP and {seen['tcp_messages']} over TCP. "
             "Now SIGKILL to everything on host a: daemon and QEMU.")
        killed, dead = world.a.kill()
        go_on(client, dead, replies=600)
        step("The client judges, by the replies alone.")
        found = client.ask(f"finish {killed} {dead}")
        wrong = complaints(found)
        promote_ms = None
        if found["failover_ms"] is not None:
            after = world.b.status()
            promote_ms = after["promote_ms"]
            tell(f"    Host b: {after['role']}, {after['state']}, generation {after['generation']}. "
                 f"Loss noticed, right to run won, promotion in {promote_ms:.1f} ms.")
            tell(f"    First reply from the replica {found['failover_ms']:.0f} ms after the kill; the TCP "
                 f"session was silent for {found['tcp_gap_ms']:.0f} ms and went on: "
                 f"{found['tcp_messages']} messages.")
            tell(f"    {found['replies']} replies, {found['audited']} audited in the guest's memory: "
                 f"{found['replies_rolled_back']} rolled back, {found['requests_lost_after_ack']} forgotten.")
        else:
            world.failed = True
        for text in wrong:
            tell(f"    FAILED: {text}")
        if wrong:
            world.save_logs()
        else:
            tell("    Nothing that was seen outside has been taken back.")
        if options.keep:
            step(f"Kept: host b is namespace {world.b.ns.name}, its API {world.b.api}. "
                 "Interrupt to clean up.")
        if options.json:
            print(json.dumps(rounded({
                "transport": status["transport"],
                "epochs": status["epochs"]["acked"], "epoch_ms": status["epoch_ms"],
                "pause_ms": {"p50": pause["p50"], "p99": pause["p99"]},
                "floor_ms": {"p50": floor["pause_ms"]["p50"]},
                "commit_ms": {"p50": commit["p50"], "p99": commit["p99"]},
                "dirty_pages": {"p50": dirty["p50"]}, "promote_ms": promote_ms,
                "failover_ms": found["failover_ms"], "tcp_survived": found["tcp_survived"],
                "replies_rolled_back": found["replies_rolled_back"],
                "requests_lost_after_ack": found["requests_lost_after_ack"]})), flush=True)
        if options.keep:
            try:
                signal.pause()
            finally:
                world.close()
        return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WorldError as failure:
        print(f"demo.sh: {failure}", file=sys.stderr)
        sys.exit(1)
