# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Faults of the guest and of its QEMU: killed, stalled, rebooting, greedy, malicious."""

import os
import signal
import time

from catalogue import scenario
from failover import reboot
from hosts import EITHER, in_background
from scene import LOST_S, Expect, Talker
from world import WorldError, wait_until


@scenario(34)
def qemu_killed(scene):
    """The guest dies with its process. Its last committed epoch is on the backup."""
    scene.moment()
    begin = time.monotonic()
    for pid in scene.guests(scene.primary):
        os.kill(pid, signal.SIGKILL)
    return begin, time.monotonic(), Expect("backup", "nobody")


@scenario(3, 34)
def standby_killed(scene):
    """The QEMU that waits on the backup dies: the guest must not count on it any longer."""
    scene.moment()
    begin = time.monotonic()
    for pid in scene.guests(scene.backup):
        os.kill(pid, signal.SIGKILL)
    scene.moment(0.5, 1.0)
    return begin, time.monotonic(), Expect("primary", turns=1)


@scenario(36)
def qmp_stalls(scene):
    """QEMU answers nothing for a while, and then everything."""
    scene.moment()
    pids = scene.guests(scene.primary)
    begin = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    scene.moment(0.05, 3 * LOST_S)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(36)
def qmp_silent_for_too_long(scene):
    """Longer than qmp_timeout: protection ends, the guest goes on where it is."""
    pids = scene.guests(scene.primary)
    begin = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until("the driver's patience to end",
                   lambda: scene.status(scene.primary).get("state") != "protected", 15)
        scene.moment(0.0, 0.5)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(36)
def switchover_to_a_standby_that_hangs(scene):
    """The guest stands, and the QEMU that it is handed over to does not answer: it runs on where it is."""
    scene.moment()
    pids = scene.guests(scene.backup)
    begin = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        order = in_background(scene.primary, "switchover", "vm1")
        wait_until("the guest to run on",
                   lambda: scene.status(scene.primary).get("state") == "unprotected", 15)
        order.communicate(timeout=30)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return begin, time.monotonic(), Expect("primary", turns=1)


@scenario(30)
def dirties_all_its_memory(scene):
    """More in every epoch than the pool holds; and then its host dies."""
    scene.client.ask("load 4 40000")
    scene.client.ask("load 1 2000000")
    try:
        scene.moment(2.0, 3.0)
        if scene.status(scene.primary).get("state") != "protected":
            raise WorldError("it is not protected any more: " + scene.status(scene.primary).get("reason", ""))
        begin, end = scene.kill(scene.primary)
        scene.settle(Expect("backup"))
    finally:
        scene.client.ask("load 1 2000")
        scene.client.ask("load 4 4096")
    return begin, end, Expect("backup")


@scenario(29, 47, packet_buffer_mib=1)
def packet_buffer_at_its_bound(scene):
    """A guest that sends more than may be held: it waits, nothing is dropped."""
    scene.primary.must("unprotect", "vm1")
    scene.protect(more=("--epoch", "1s"))
    before = series(scene.primary, "remusd_netbuf_dropped_packets_total")
    flood = Talker(scene.world.client_ns, "flood.py", "10.77.0.2")
    begin = time.monotonic()
    try:
        wait_until("the buffer to be full",
                   lambda: series(scene.primary, "remusd_netbuf_stalls_total") > 0, 30)
        scene.moment(0.5, 1.0)
    finally:
        flood.end()
    if series(scene.primary, "remusd_netbuf_dropped_packets_total", 'direction="out"') > before:
        raise WorldError("packets of the guest were dropped")
    if scene.chance.random() < 0.5:
        return *scene.kill(scene.primary), Expect("backup")
    scene.primary.must("unprotect", "vm1")  # With epochs of a second the audit would take minutes.
    scene.protect()
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


def series(host, name, label=""):
    return sum(float(line.split()[-1]) for line in host.fetch("/metrics").splitlines()
               if line.startswith(name) and label in line)


@scenario(35)
def guest_reboots(scene):
    """By itself, while it is protected: it stays so, and can fail over afterwards."""
    fresh_start(scene, 2)
    scene.moment()
    return *scene.kill(scene.primary), Expect("backup")


@scenario(35)
def guest_panics(scene):
    """Its kernel crashes and, as it was told, boots again."""
    fresh_start(scene, 8)
    return time.monotonic(), time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(35)
def guest_powers_off(scene):
    """It ends by itself: nobody brings it back."""
    scene.moment()
    begin = time.monotonic()
    scene.client.ask("load 7 0")
    scene.primary.wait_state("stopped", timeout=20)
    return begin, time.monotonic(), Expect("nobody", turns=1)


def fresh_start(scene, command):
    """The guest forgets everything by its own will, so the client begins new books."""
    scene.moment()
    found = scene.client.ask("finish")
    if found["replies_rolled_back"] or found["requests_lost_after_ack"]:
        raise WorldError(f"wrong before the reboot: {found['faults']}")
    reboot(scene.client, command=command)
    scene.client.end()
    scene.client = scene.world.client()
    scene.client.ask("connect")
    scene.judged = dict.fromkeys(scene.judged, 0)
    scene.primary.wait_state("protected", timeout=10)
