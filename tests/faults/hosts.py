# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Faults of hosts and daemons: killed, frozen, slow, restarted, back from the dead."""

import os
import signal
import time

from catalogue import scenario
from scene import LOST_S, Expect
from world import WorldError

EITHER = ("primary", "backup")


@scenario(1, 2)
def primary_host_killed(scene):
    scene.moment()
    return *scene.kill(scene.primary, cut_power=scene.chance.random() < 0.5), Expect("backup")


@scenario(1, 33)
def primary_daemon_killed_and_back(scene):
    """QEMU outlives its daemon, the daemon comes back: the guest is not heard twice, nor started again. A
    daemon that is back before the backup has given it up goes on with its guest."""
    scene.moment()
    begin, end = scene.kill_daemon(scene.primary)
    scene.moment(0.0, LOST_S)
    scene.primary.start()
    either = Expect("backup", "primary")
    scene.settle(either)
    refused = scene.primary.cli("start", "vm1")
    if refused.returncode == 0:
        raise WorldError("a daemon that came back started the guest a second time")
    return begin, end, either


@scenario(3)
def backup_host_killed(scene):
    scene.moment()
    return *scene.kill(scene.backup, cut_power=scene.chance.random() < 0.5), Expect("primary", turns=1)


@scenario(3, 32)
def backup_restarted_mid_epoch(scene):
    scene.moment()
    number = scene.chance.choice((signal.SIGKILL, signal.SIGTERM))
    begin, end = scene.kill_daemon(scene.backup, number)
    scene.backup.start()
    return begin, end, Expect("primary", turns=1)


@scenario(27, 38)
def primary_host_frozen(scene):
    """All of the host stands still, then goes on as if no time had passed."""
    scene.moment()
    begin = time.monotonic()
    scene.primary.ns.signal(signal.SIGSTOP)
    scene.moment(0.05, 4 * LOST_S)
    scene.primary.ns.signal(signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(27, 38)
def primary_daemon_frozen(scene):
    scene.moment()
    begin = time.monotonic()
    scene.primary.daemon.send_signal(signal.SIGSTOP)
    scene.moment(0.05, 4 * LOST_S)
    scene.primary.daemon.send_signal(signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(27)
def backup_host_frozen(scene):
    scene.moment()
    begin = time.monotonic()
    scene.backup.ns.signal(signal.SIGSTOP)
    scene.moment(0.05, 4 * LOST_S)
    scene.backup.ns.signal(signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(27)
def both_hosts_frozen(scene):
    """One after the other wakes, in any order."""
    scene.moment()
    hosts = [scene.primary, scene.backup]
    begin = time.monotonic()
    for host in hosts:
        host.ns.signal(signal.SIGSTOP)
    scene.chance.shuffle(hosts)
    scene.moment(0.05, 2 * LOST_S)
    hosts[0].ns.signal(signal.SIGCONT)
    scene.moment(0.0, 2 * LOST_S)
    hosts[1].ns.signal(signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(28)
def slow_backup(scene):
    """A backup that gets a third of the time: slower than the guest, and never silent for long."""
    scene.moment()
    begin = time.monotonic()
    try:
        for _ in range(20):
            scene.backup.daemon.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            scene.backup.daemon.send_signal(signal.SIGCONT)
            time.sleep(0.05)
    finally:
        scene.backup.daemon.send_signal(signal.SIGCONT)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(38)
def stale_primary_returns(scene):
    """A host that was killed comes back and is told to run what it ran: refused."""
    scene.moment()
    begin, end = scene.kill(scene.primary, cut_power=True)
    scene.settle(Expect("backup"))
    scene.revive(scene.primary)
    scene.world.define_guest()
    own = os.path.join(scene.world.a.guests, "vm1.toml")
    refused = scene.primary.cli("start", "vm1", *(("--definition", own) if scene.primary.name == "b" else ()))
    if refused.returncode != 6:
        raise WorldError(f"start on the stale primary: exit {refused.returncode}: {refused.stderr.strip()}")
    return begin, end, Expect("backup")


@scenario(40)
def second_failover(scene):
    """The host that took over dies, too, as soon as it is protected again."""
    scene.moment()
    begin, end = scene.kill(scene.primary)
    first = scene.settle(Expect("backup"))
    if first is not scene.backup:
        raise WorldError(f"the first failover failed: {scene.told}")
    scene.revive(scene.primary)
    scene.primary, scene.backup = scene.backup, scene.primary
    scene.protect()
    scene.moment(0.0, 0.5)
    end = scene.kill(scene.primary)[1]
    return begin, end, Expect("backup", turns=3)


@scenario(40, 39)
def resync_cut_short(scene):
    """The new backup dies in the first sync: the guest goes on, and its half replica is not promoted."""
    scene.primary.must("unprotect", "vm1")
    begin = time.monotonic()
    started = in_background(scene.primary, "protect", "vm1", "--peer", scene.backup.name, "--timeout", "60s")
    scene.moment(0.0, 0.6)
    end = scene.kill(scene.backup)[1]
    started.wait(timeout=70)
    started.stderr.close()
    return begin, end, Expect("primary", turns=1)


def in_background(host, *arguments):
    import subprocess
    return subprocess.Popen(host.ns.command(host.program, "--api", host.api, *arguments),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
