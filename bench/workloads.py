# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""remusd under each workload, unprotected and protected in turn on one pair. docs/performance.md says what
each workload does."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time

from figures import empty_workload, means, middles, parse_metrics, phases, quantiles, ratio
from qmp import Monitor, pauses_ms
from world import GUEST_IP, World, WorldError, run, wait_until
from failover import boot, one_round, protect, protection
from measure import cpu_seconds, daemon_pid, set_dirty, stretch

# A machine that is busy with a benchmark may be silent for longer than a host that lives should be. How fast
# a loss is noticed is measured in failovers().
PATIENT = {"heartbeat_ms": 20, "heartbeat_lost": 50}
HERE = os.path.dirname(os.path.abspath(__file__))
SETTLE_S = 0.7  # After the first sync, before counting: the stretch before must not be seen.
FLOOR_PAUSES = 40
NIC = "virtio-net-pci-legacy"  # its state is small; the peers' guest has the same
LATENCY_CONNECTIONS, LATENCY_THINK_MS, BUSY_CONNECTIONS = 4, 5, 256
NUMBER, COMPRESSIBLE, NOISE = 0, 1, 2  # what the guest's dirtier writes
READ, SET_RATE, SPIN, SET_PAGES, SET_SHUFFLED, SET_CONTENT = 0, 1, 3, 4, 5, 6  # its load port


@dataclasses.dataclass
class Workload:
    name: str
    rate: int = 0  # pages a second
    pages: int = 4096
    shuffled: bool = False
    content: int = NUMBER
    spin: bool = False  # a thread that computes takes what is left of the processor
    server: str = ""
    epoch: str = "25ms"
    latency_target: bool = False
    events: bool = False  # QEMU's own STOP and RESUME are listened to, as those of the peers are
    longer: float = 1  # its stretches, for a p99 of more epochs
    quick: bool = True


GUEST = [
    Workload("idle"),
    Workload("cpu", spin=True),
    Workload("dirty_1k", rate=1000, spin=True),
    Workload("dirty_8k", rate=8000, spin=True, events=True, longer=2),
    Workload("dirty_40k", rate=40000, spin=True),
    Workload("dirty_8k_5ms", rate=8000, spin=True, epoch="5ms"),
    Workload("dirty_8k_2ms", rate=8000, spin=True, epoch="2ms"),
    Workload("incompressible", rate=10000, content=NOISE, spin=True),
    Workload("compressible", rate=10000, content=COMPRESSIBLE, spin=True, quick=False),
    Workload("dirty_8k_small_set", rate=8000, pages=256, spin=True, quick=False),
    Workload("dirty_8k_large_set", rate=8000, pages=24576, spin=True, quick=False),
    Workload("dirty_8k_random", rate=8000, pages=24576, shuffled=True, spin=True, quick=False),
]
SERVERS = [
    Workload("kv", server="kv"),
    Workload("kv_latency_target", server="kv", latency_target=True),
    Workload("web", server="web"),
]


def guest_options(**changes):
    fields = {"nic": NIC, "vcpus": 1, "machine": "pc", "tracker": "auto", "epoch_ms": 25,
              "dirty": 0}
    fields.update(changes)
    return argparse.Namespace(**fields)


def protect_help(host):
    return host.cli("protect", "--help").stdout


def outside(world, *arguments, timeout=60):
    """load.py in the client's namespace: its last line."""
    done = run(*world.client_ns.command(sys.executable, os.path.join(HERE, "load.py"), *map(str, arguments)),
               check=False, timeout=timeout)
    lines = done.stdout.strip().splitlines()
    answer = json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-300:]}
    if "error" in answer:
        raise WorldError(f"load.py {arguments[0]}: {answer['error']}")
    return answer


def requests(world, server, seconds):
    """Latency with few connections that pause between requests, then throughput with many that do not."""
    calm = outside(world, server, "--guest", GUEST_IP, "--connections", LATENCY_CONNECTIONS, "--think-ms",
                   LATENCY_THINK_MS, "--seconds", seconds)
    busy = outside(world, server, "--guest", GUEST_IP, "--connections", BUSY_CONNECTIONS, "--seconds",
                   seconds)
    return {"request_ms": calm["request_ms"], "per_s": busy["per_s"], "busy_request_ms": busy["request_ms"]}


def load(world, client, workload, seconds):
    """One stretch of the workload: what the guest, or its clients, got done."""
    if workload.server:
        return requests(world, workload.server, seconds)
    return stretch(client, seconds * workload.longer)


def monitor_path(world):
    return os.path.join(world.dir, "bench.qmp")


class Meter:
    """What the daemons count and consume, over one stretch of protection."""

    def __init__(self, world, guest="vm1", monitor=None):
        self.world, self.guest = world, guest
        self.monitor = monitor
        if monitor:
            monitor.drain()
        self.metrics = self._metrics()
        self.status = world.a.status(guest)
        self.cpu = self._cpu()
        self.begun = time.monotonic()

    def _metrics(self):
        return parse_metrics(self.world.a.fetch("/metrics"), self.guest)

    def _cpu(self):
        return [cpu_seconds(daemon_pid(host)) for host in (self.world.a, self.world.b)]

    def read(self):
        span, cpu = time.monotonic() - self.begun, self._cpu()
        metrics, status = self._metrics(), self.world.a.status(self.guest)
        between = None
        if self.monitor:
            between = quantiles(pauses_ms(self.monitor.drain()))
        if status["state"] != "protected":
            raise WorldError(f"{self.guest} is {status['state']} after the stretch: {status['reason']}")

        def grown(name):
            key = (name, ())
            return metrics[key] - self.metrics.get(key, 0) if key in metrics else None

        sent = grown("remusd_checkpoint_sent_bytes_total")
        found = {"epoch_ms": status["epoch_ms"], "pause_ms": status["pause_ms"],
                 "stop_to_resume_ms": between, "commit_ms": status["commit_ms"],
                 "dirty_pages": status["dirty_pages"],
                 "phases_ms": phases(self.metrics, metrics),
                 "wire_ratio": ratio(sent, grown("remusd_checkpoint_raw_bytes_total")),
                 "wire_mb_s": None if sent is None else sent / span / 1e6,
                 "cpu_cores": (cpu[0] - self.cpu[0]) / span,
                 "cpu_cores_backup": (cpu[1] - self.cpu[1]) / span,
                 "epochs_per_s": (status["epochs"]["acked"] - self.status["epochs"]["acked"]) / span}
        for key in ("epoch_interval_ms", "epochs_by_reason"):
            if key in status:
                found[key] = status[key]
        return found


def arguments_of(workload, options):
    more = ["--epoch", workload.epoch]
    if workload.latency_target:
        more += ["--latency-target", options.latency_target, "--max-slowdown", options.max_slowdown]
    return more


def one_comparison(world, client, monitor, workload, options, before):
    """Protected, then unprotected again; ratios are to the mean of the unprotected stretches before and
    after, so that a machine which becomes slower or faster does not pass for a cost. Returns the figures and
    the stretch after."""
    floor = None
    if not workload.server:
        floor = world.a.ask("bench", "floor", "vm1", "--count", str(FLOOR_PAUSES), timeout=60)["pause_ms"]
    begun = time.monotonic()
    protect(world, more=arguments_of(workload, options))
    first_sync_s = time.monotonic() - begun
    time.sleep(SETTLE_S)  # What is measured is a stretch of steady protection.
    meter = Meter(world, monitor=monitor if workload.events else None)
    guarded = load(world, client, workload, options.seconds)
    found = meter.read()
    world.a.must("unprotect", "vm1")
    world.a.wait_state("unprotected")
    after = load(world, client, workload, options.seconds)
    alone = means(before, after)
    found.update(floor_pause_ms=floor, first_sync_s=first_sync_s)
    if workload.server:
        found.update(request_ms=guarded["request_ms"], unprotected_request_ms=alone["request_ms"],
                     throughput_per_s=guarded["per_s"], unprotected_throughput_per_s=alone["per_s"],
                     throughput_ratio=ratio(guarded["per_s"], alone["per_s"]),
                     busy_request_ms=guarded["busy_request_ms"],
                     unprotected_busy_request_ms=alone["busy_request_ms"])
    else:
        found["progress_ratio"] = ratio(guarded["spins_per_s"], alone["spins_per_s"])
        found["dirtied_ratio"] = ratio(guarded["dirtied_per_s"], alone["dirtied_per_s"])
    return found, after


def compare(world, client, monitor, workload, options, tell):
    """All rounds of one workload; the median of each figure."""
    if workload.latency_target and "--latency-target" not in protect_help(world.a):
        return empty_workload("not measured: `remusd protect` has no --latency-target")
    if workload.server:
        if workload.server == "kv":
            outside(world, "fill", "--guest", GUEST_IP)
    else:
        set_dirty(client, workload.rate)
        for command, argument in ((SET_PAGES, workload.pages), (SET_SHUFFLED, int(workload.shuffled)),
                                  (SET_CONTENT, workload.content), (SPIN, int(workload.spin))):
            client.ask(f"load {command} {argument}")
    rounds = []
    alone = load(world, client, workload, options.seconds)
    for number in range(1, options.rounds + 1):
        found, alone = one_comparison(world, client, monitor, workload, options, alone)
        rounds.append(found)
        pause = rounds[-1]["pause_ms"]
        tell(f"  {workload.name} {number}/{options.rounds}: pause p50 {pause['p50']:.2f} p99 "
             f"{pause['p99']:.2f} ms" + summary(rounds[-1]))
    found = middles(rounds)
    found["rounds"] = len(rounds)
    found["pause_ms"]["max"] = max(one["pause_ms"]["max"] for one in rounds)
    if not workload.server and not workload.spin:
        found["progress_ratio"] = None
    return found


def summary(found):
    if found.get("progress_ratio"):
        return f", progress {found['progress_ratio']:.3f}, wire {found['wire_ratio'] or 0:.3f}"
    if found.get("request_ms"):
        return (f", request {found['unprotected_request_ms']['p50']:.2f} -> {found['request_ms']['p50']:.2f} "
                f"ms, throughput {found['throughput_ratio'] or 0:.3f}, wire {found['wire_ratio'] or 0:.3f}")
    return ""


def measure(names, options, tell):
    """The workloads of these names: ({name: figures}, {name: error})."""
    found, errors = {}, {}
    for group, servers in ((GUEST, ""), (SERVERS, "kv,web")):
        chosen = [workload for workload in group if workload.name in names]
        if not chosen:
            continue
        try:
            with World(protection(guest_options(**PATIENT))) as world:
                client = boot(world, guest_options(), servers=servers,
                              extra_args=["-chardev",
                                          f"socket,id=bench,path={monitor_path(world)},server=on,wait=off",
                                          "-mon", "chardev=bench,mode=control"])
                client.ask("pause")
                monitor = Monitor(monitor_path(world))  # before a standby takes its path
                for workload in chosen:
                    try:
                        found[workload.name] = compare(world, client, monitor, workload, options, tell)
                    except WorldError as error:
                        errors[workload.name] = str(error)
                        tell(f"  {workload.name}: {error}")
                        recover(world)
        except WorldError as error:
            errors[servers or "pair"] = str(error)
            tell(f"  {error}")
    return found, errors


def recover(world):
    """After a failed comparison, so that the next one begins unprotected."""
    with contextlib.suppress(WorldError):
        world.a.cli("unprotect", "vm1")
        wait_until("the end of protection", lambda: world.a.status()["state"] != "protected", 5)


def failovers(count, tell):
    """Fresh pairs, heartbeat 10 ms and loss after 4: the medians."""
    options = guest_options(dirty=2000, heartbeat_ms=10, heartbeat_lost=4)
    rounds = []
    for number in range(1, count + 1):
        one = one_round(options, 1.5)
        rounds.append({key: one.get(key) for key in ("promote_ms", "failover_ms", "tcp_gap_ms")})
        rounds[-1]["complaints"] = one["complaints"]
        tell(f"  failover {number}/{count}: " + ("; ".join(one["complaints"]) or
             f"promote {one['promote_ms']:.1f} ms, first reply {one['failover_ms']:.0f} ms after the kill"))
    fields = ("promote_ms", "failover_ms", "tcp_gap_ms")
    found = middles([{key: one[key] for key in fields} for one in rounds])
    found.update(count=count, survived=sum(not one["complaints"] for one in rounds),
                 worst_failover_ms=max((one["failover_ms"] for one in rounds if one["failover_ms"]),
                                       default=None))
    return found
