# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""One failover from boot to verdict, as the demo, the soak and the tests run it."""

import argparse
import os
import sys
import time

import disk_check
from exact import Exact
from world import World, WorldError, wait_until

DISK_MS = 25  # from one record to the next
LEDGERS = ("records", "database")  # what a guest with a disk keeps on it
TRACKERS, MACHINES = ("async", "sync", "auto"), ("pc", "q35")
NICS = ("virtio-net-pci", "virtio-net-pci-legacy", "e1000")


def add_guest_options(parser):
    parser.add_argument("--nic", choices=NICS, default=NICS[0])
    parser.add_argument("--vcpus", type=count, default=1)
    parser.add_argument("--tracker", choices=TRACKERS, default="auto")
    parser.add_argument("--machine", choices=MACHINES, default="pc")
    parser.add_argument("--epoch-ms", type=count, default=25)
    parser.add_argument("--disk", action="store_true", help="the guest lies on a disk, and writes to it")
    parser.add_argument("--dirty", type=int, default=2000, help="pages the guest dirties each second")


def parse_guest_options(parser):
    """The arguments; with --check-arguments the program ends once they are known to be good."""
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true",
                        help="plain text between the hosts instead of TLS, for comparisons")
    options = parser.parse_args()
    if getattr(options, "exact", False) and not options.disk:
        parser.error("--exact looks at a disk: it needs --disk")
    World.tls = not options.plain
    if options.check_arguments:
        sys.exit(0)
    return options


def count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def protection(options):
    """The daemons' [protection]; heartbeat_ms and heartbeat_lost too where the options have them."""
    optional = {key: getattr(options, key) for key in ("heartbeat_ms", "heartbeat_lost")
                if hasattr(options, key)}
    return {"tracker": options.tracker, "epoch_ms": options.epoch_ms, **optional}


def boot(world, options, connect_timeout=60, **guest):
    """Starts both daemons and vm1 on host a; returns the client, its traffic running. `guest`: more for
    define_guest."""
    world.a.start()
    world.b.start()
    disk = getattr(options, "disk", False)
    world.define_guest(nic=options.nic, vcpus=options.vcpus, machine=options.machine, dirty=options.dirty,
                       disk=disk, **guest)
    world.a.must("start", "vm1")
    client = world.client(connect_timeout=connect_timeout, disk_ms=DISK_MS if disk else 0)
    client.ask("connect", timeout=connect_timeout + 30)
    return client


def protect(world, timeout=120, guest="vm1", more=()):
    world.a.must("protect", guest, "--peer", "b", "--timeout", f"{timeout}s", *more, timeout=timeout + 10)


def go_on(client, since, replies=200, timeout=20):
    """Waits until the client has heard the replica for a while, over UDP and TCP: how long TCP stays silent
    is up to its retransmission timer. False when the time is over."""
    start = client.ask("progress")

    def enough():
        seen = client.ask("progress")
        fresh = seen["last_reply"] is not None and seen["last_reply"] > since
        return (fresh and seen["replies"] >= start["replies"] + replies and
                seen["tcp_messages"] >= start["tcp_messages"] + replies // 2)

    try:
        wait_until("the session to go on", enough, timeout)
    except Exception:  # The verdict tells what is missing.
        return False
    return True


def complaints(found):
    """What the client's verdict after a failover has against it; empty when all is well."""
    wrong = []
    if found["failover_ms"] is None:
        wrong.append("no reply from the replica")
    if not found["tcp_survived"]:
        wrong.append(f"the TCP session did not survive ({found['tcp_closed'] or 'silent or out of order'})")
    if found["replies_rolled_back"]:
        wrong.append(f"{found['replies_rolled_back']} replies rolled back")
    if found["requests_lost_after_ack"]:
        wrong.append(f"{found['requests_lost_after_ack']} answered requests forgotten")
    if found["tcp_faults"]:
        wrong.append(f"{found['tcp_faults']} faults in the TCP stream")
    if found["guest_memory_corrupt"] != 0:
        wrong.append(f"corrupt pages in the guest: {found['guest_memory_corrupt']}")
    if found["unaudited"]:
        wrong.append(f"{found['unaudited']} answers could not be audited")
    for name in LEDGERS:
        ledger = found.get(name)
        if ledger and (ledger["requests_lost_after_ack"] or ledger["replies_rolled_back"] or
                       ledger["unaudited"] or not ledger["in_order"]):
            wrong.append(f"{name}: {ledger}")
    return wrong + [f"client: {text}" for text in found["faults"]]


def disk_complaints(world, client, host):
    """Ends the guest on `host`, and looks at its disk there: what was acknowledged must be on it."""
    known = os.path.join(world.dir, "acknowledged.json")
    client.ask(f"acknowledged {known}")
    host.must("stop", "vm1")
    found = disk_check.check(world.disk_of(host.name), disk_check.load_acknowledged(known))
    return [] if found["ok"] else [f"the disk on {host.name}: {found}"]


def reboot(client, timeout=150, command=2):
    """Reboots the guest, or ends it by another command of the load port after which it boots, and waits for
    its service. By the boot's number: a slow boot may take longer than its predecessor ran."""
    before = client.ask("load 0 0")["boot"]
    client.ask(f"load {command} 0")

    def back():
        try:
            return client.ask("load 0 0")["boot"] != before
        except WorldError:
            return False

    wait_until("the guest's service after its reboot", back, timeout)


def one_round(options, run_for, cut_power=False, and_reboot=False):
    """A fresh pair, one failover after `run_for` seconds of protection: the client's findings, with the
    complaints, and promote_ms as the new primary tells it. Where the options say `exact`, the replica is
    looked at before it is promoted."""
    exact, wrong = None, []
    with World(protection(options)) as world:
        if getattr(options, "exact", False):
            exact = Exact(world)
        client = boot(world, options)
        if exact:
            exact.begin()
        protect(world)
        time.sleep(run_for)  # The moment of the kill: it is the experiment, not a wait for something.
        if exact:
            exact.keep_from_promotion()
        begin, end = world.a.kill(cut_power)
        if exact:
            wrong = exact.complaints()
            exact.let_promote()
        go_on(client, end, timeout=90 if exact else 20)  # After so long TCP tries again late.
        found = client.ask(f"finish {begin} {end}")
        found["complaints"] = wrong + complaints(found)
        if found["failover_ms"] is not None:
            status = world.b.status()
            found["promote_ms"] = status["promote_ms"]
            if getattr(options, "disk", False):
                found["complaints"] += disk_complaints(world, client, world.b)
            elif and_reboot:
                try:
                    reboot(client)
                except Exception as error:
                    found["complaints"].append(str(error))
        if found["complaints"]:
            world.save_logs()
        return found
