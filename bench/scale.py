# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Many guests on one pair, and one large guest."""

import concurrent.futures
import math
import time

from failover import boot, complaints, go_on, protect, protection
from world import World, WorldError, wait_until
from workloads import NIC, PATIENT, SET_RATE, Meter, guest_options, outside

GUESTS, GUEST_MIB, CALM_RATE, HEAVY_RATE = 8, 128, 500, 20000
LARGE_MIB, LARGE_PAGES, LARGE_RATE = 4096, 262144, 8000
BOOT_S, READY = 120, "remusd-guest ready"
STRETCHES = 3  # of the usual length: a p99 needs many epochs
# Patient, because a busy machine alone must not end the measurement; failover_ms counts it in.
LARGE_HEARTBEAT = {"heartbeat_ms": 20, "heartbeat_lost": 25}


def interval_p99(status):
    return (status.get("epoch_interval_ms") or {}).get("p99")


def worst(values):
    """The largest; None when one is missing, because it might be the worst."""
    return None if None in values or not values else max(values)


def many(options, tell):
    """Eight guests at 25 ms; then the first one dirties heavily, and the others must not notice."""
    names = [f"vm{number}" for number in range(1, GUESTS + 1)]
    address = {name: f"10.77.0.{10 + number}" for number, name in enumerate(names, 1)}
    with World(protection(guest_options(**PATIENT))) as world:
        world.a.start()
        world.b.start()
        serial = {name: f"{world.dir}/{name}.serial" for name in names}
        for name in names:
            world.define_guest(name=name, ip=address[name], dirty=CALM_RATE, memory_mib=GUEST_MIB, pages=2048,
                               nic=NIC, serial_log=serial[name])
            world.a.must("start", name)
        for name in names:
            wait_until(f"{name} to boot", lambda path=serial[name]: READY in text_of(path), BOOT_S)
        tell(f"  {GUESTS} guests run")
        begun = time.monotonic()
        protect_all(world, names)
        tell(f"  all protected after {time.monotonic() - begun:.1f} s")
        calm = watch(world, names, STRETCHES * options.seconds)
        outside(world, "set", "--guest", address[names[0]], SET_RATE, HEAVY_RATE)
        for name in names[1:]:  # So that their quantiles tell of the time beside the heavy one.
            world.a.must("unprotect", name)
            world.a.wait_state("unprotected", guest=name)
        protect_all(world, names[1:])
        beside = watch(world, names, STRETCHES * options.seconds)
        result = {
            "guests": GUESTS, "calm": calm, "beside_heavy": beside, "heavy": names[0],
            "worst_interval_p99_ms": worst([one["interval_p99_ms"] for one in calm.values()]),
            "worst_interval_p99_beside_heavy_ms": worst([beside[name]["interval_p99_ms"]
                                                         for name in names[1:]]),
            "worst_mean_interval_ms": worst([one["mean_interval_ms"] for one in calm.values()]),
            "worst_mean_interval_beside_heavy_ms": worst([beside[name]["mean_interval_ms"]
                                                          for name in names[1:]]),
            "worst_pause_p99_ms": worst([one["pause_ms"]["p99"] for one in calm.values()]),
            "heavy_mean_interval_ms": beside[names[0]]["mean_interval_ms"],
        }
        if result["worst_interval_p99_ms"] is None:
            result["note"] = "interval p99 not measured: `status` has no epoch_interval_ms; means are"
        return result


def protect_all(world, names):
    """At the same time: each one's quantiles begin with its first epoch, and should tell of few syncs."""
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: protect(world, guest=name), names))


def text_of(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def watch(world, names, seconds):
    """Each guest's epochs over a stretch."""
    before = {name: (time.monotonic(), world.a.status(name)) for name in names}
    time.sleep(seconds)
    found = {}
    for name in names:
        status, now = world.a.status(name), time.monotonic()
        if status["state"] != "protected":
            raise WorldError(f"{name} is {status['state']} after the stretch: {status['reason']}")
        acked = status["epochs"]["acked"] - before[name][1]["epochs"]["acked"]
        found[name] = {"interval_p99_ms": interval_p99(status),
                       "mean_interval_ms": 1e3 * (now - before[name][0]) / acked if acked else None,
                       "pause_ms": status["pause_ms"], "commit_ms": status["commit_ms"]}
    return found


def large(options, tell):
    """A 4 GiB guest with 1 GiB touched: the first sync, steady protection, a failover."""
    with World(protection(guest_options(**LARGE_HEARTBEAT))) as world:
        chosen = guest_options(dirty=LARGE_RATE)
        serial = f"{world.dir}/large.serial"
        client = boot(world, chosen, connect_timeout=BOOT_S, memory_mib=LARGE_MIB, pages=LARGE_PAGES,
                      serial_log=serial)
        wait_until("the guest to have touched its memory", lambda: READY in text_of(serial), BOOT_S)
        floor = world.a.ask("bench", "floor", "vm1", "--count", "40", timeout=60)["pause_ms"]
        begun = time.monotonic()
        protect(world, timeout=300)
        first_sync_s = time.monotonic() - begun
        tell(f"  first sync {first_sync_s:.1f} s")
        time.sleep(1)
        meter = Meter(world)
        time.sleep(options.seconds)
        steady = meter.read()
        killed, dead = world.a.kill()
        go_on(client, dead)
        found = client.ask(f"finish {killed} {dead}")
        wrong = complaints(found)
        scan = (steady["phases_ms"].get("scan") or {}).get("mean")
        result = {"memory_gib": LARGE_MIB / 1024, "touched_gib": LARGE_PAGES / 262144,
                  "first_sync_s": first_sync_s, "floor_pause_ms": floor, "pause_ms": steady["pause_ms"],
                  "pause_p50_ms": steady["pause_ms"]["p50"], "pause_p99_ms": steady["pause_ms"]["p99"],
                  "commit_ms": steady["commit_ms"], "phases_ms": steady["phases_ms"],
                  "scan_ms_per_gib": scan / (LARGE_MIB / 1024) if scan is not None else None,
                  "wire_ratio": steady["wire_ratio"], "epochs_per_s": steady["epochs_per_s"],
                  "dirty_pages": steady["dirty_pages"], "survived": int(not wrong),
                  "loss_noticed_after_ms": math.prod(LARGE_HEARTBEAT.values()),
                  "failover_ms": found["failover_ms"]}
        if found["failover_ms"] is not None:
            result["promote_ms"] = world.b.status()["promote_ms"]
        if wrong:
            result["note"] = "; ".join(wrong)
        return result
