# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Each step of the protocol (ckpt/fail_point.h), to die at, to stand still at, or to lose an answer.

These need a daemon with fail points. The scenarios are made from the daemon's own list, so that a new point
without a way to it is a test that fails.
"""

import signal
import time

import fail_points
from catalogue import SCENARIOS, Scenario
from hosts import EITHER, in_background
from scene import LOST_S, Expect, Needs
from world import WorldError, wait_until

PATIENCE_S = 20
NOBODY = "nobody"


def in_epochs(scene):
    """The point lies on the way of every epoch."""


def in_a_new_session(scene):
    scene.later.append(in_background(scene.primary, "protect", "vm1", "--peer", scene.backup.name,
                                     "--timeout", "30s"))


def when_cut_off(scene):
    scene.links("link set repl down")


def when_the_backup_is_gone(scene):
    scene.kill(scene.backup)


def when_ordered(scene):
    scene.later.append(in_background(scene.backup, "failover", "vm1"))


def when_handed_over(scene):
    scene.later.append(in_background(scene.primary, "switchover", "vm1"))


# Point -> (side, faults, the way there, who may be heard when the process dies there).
WAYS = {
    **{f"primary.{step}": ("primary", (1,), in_epochs, ("backup",))
       for step in ("paused", "scanned", "copied", "resumed", "saved", "before_pages", "after_pages",
                    "before_device", "after_device", "before_commit", "after_commit")},
    "primary.acknowledged": ("primary", (2,), in_epochs, ("backup",)),
    "primary.released": ("primary", (2,), in_epochs, ("backup",)),
    "primary.before_base": ("primary", (1,), in_a_new_session, (NOBODY,)),
    "primary.after_base": ("primary", (1,), in_a_new_session, (NOBODY,)),
    "primary.before_ask": ("primary", (1,), when_cut_off, ("backup",)),
    "primary.answered": ("primary", (1, 22), when_ordered, ("backup",)),
    "primary.before_fence": ("primary", (1,), when_ordered, ("backup",)),
    "primary.before_pass": ("primary", (1,), when_the_backup_is_gone, (NOBODY,)),
    "backup.hello": ("backup", (3,), in_a_new_session, ("primary",)),
    "backup.ready": ("backup", (3,), in_a_new_session, ("primary",)),
    **{f"backup.{step}": ("backup", (3,), in_epochs, ("primary",))
       for step in ("pages", "commit", "staged", "acked", "half_applied", "applied")},
    "backup.load": ("backup", (3, 31), when_handed_over, ("primary",)),
    "backup.before_ask": ("backup", (3,), when_ordered, ("primary",)),
    "backup.won": ("backup", (3,), when_ordered, (NOBODY,)),
    "backup.promoted": ("backup", (3,), when_ordered, (NOBODY,)),
    "arbiter.before_install": ("backup", (22,), when_ordered, ("primary",)),
    "arbiter.installed": ("backup", (22,), when_ordered, (NOBODY,)),
}


def prepare(scene, point):
    """Everything up to the arming: the host at whose point it happens, and when the wait for it begins."""
    side, _, way, _ = WAYS[point]
    host = scene.primary if side == "primary" else scene.backup
    scene.later = []
    if way is in_a_new_session:
        scene.primary.must("unprotect", "vm1")
    else:
        scene.moment(0.05, 0.3)
    return host, way


def finish(scene):
    for order in scene.later:
        order.communicate(timeout=90)


def killed_at(point):
    def act(scene):
        host, way = prepare(scene, point)
        begin = time.monotonic()
        ahead = scene.chance.randrange(1, 12) if way is in_epochs else 1
        scene.dead.add(host)
        scene.points[host].arm(point, "kill", ahead)
        way(scene)
        wait_until(f"death at {point}", lambda: host.daemon.poll() is not None, PATIENCE_S)
        end = time.monotonic()
        finish(scene)
        heard = WAYS[point][3]
        # One that dies just after its promotion may have been heard: it had the right to.
        moves = heard == ("backup",) or point == "backup.promoted"
        return begin, end, Expect(*heard, turns=2 if moves else 1)

    return act


def stopped_at(point):
    """Stands still there, shorter or longer than the other side is patient, and goes on."""
    def act(scene):
        host, way = prepare(scene, point)
        begin = time.monotonic()
        scene.points[host].arm(point, "stop", scene.chance.randrange(1, 12) if way is in_epochs else 1)
        way(scene)
        wait_until(f"standstill at {point}", lambda: is_stopped(host.daemon.pid), PATIENCE_S)
        scene.moment(0.02, 3 * LOST_S)
        host.daemon.send_signal(signal.SIGCONT)
        end = time.monotonic()
        finish(scene)
        return begin, end, Expect(*EITHER)

    return act


def is_stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


def answer_lost(point, trigger):
    """The request is or is not granted, and for a while nobody hears so: on one side, or on both."""
    def act(scene):
        scene.later = []
        scene.moment(0.1, 0.5)
        hosts = list(scene.world.hosts.values())
        silent = scene.chance.sample(hosts, scene.chance.randrange(1, 3))
        for host in silent:
            scene.points[host].arm(point, "error", 1, count=scene.chance.choice((1, 3, 300)))
        scene.lose_arbiter_member()
        begin = time.monotonic()
        trigger(scene)
        scene.moment(0.2, 1.0)
        for points in scene.points.values():
            points.disarm()
        end = time.monotonic()
        finish(scene)
        return begin, end, Expect(*EITHER)

    return act


def ends(scene):
    wait_until("protection to end", lambda: scene.status(scene.primary).get("state") != "protected",
               PATIENCE_S)


def scan_fails(scene):
    """The driver fails while the guest stands: it must run on, unprotected and told."""
    scene.moment(0.1, 0.5)
    begin = time.monotonic()
    scene.points[scene.primary].arm("primary.scanned", "error")
    ends(scene)
    return begin, time.monotonic(), Expect(*EITHER)


def epoch_refused(scene):
    """The backup finds an epoch that cannot be trusted."""
    scene.moment(0.1, 0.5)
    begin = time.monotonic()
    scene.points[scene.backup].arm("backup.commit", "error")
    ends(scene)
    return begin, time.monotonic(), Expect(*EITHER)


def load_fails(scene):
    """The guest stands, and the backup cannot make it run: it runs on where it is, and somebody says why."""
    scene.moment(0.1, 0.5)
    begin = time.monotonic()
    scene.points[scene.backup].arm("backup.load", "error")
    order = in_background(scene.chance.choice((scene.primary, scene.backup)), "switchover", "vm1")
    ends(scene)
    order.communicate(timeout=90)
    return begin, time.monotonic(), Expect("primary", turns=1)


def add_scenarios(program):
    """Returns the points of this daemon that no scenario leads to."""
    def add(numbers, name, act):
        SCENARIOS.append(Scenario(numbers, name, act, Needs(fail_points=True)))

    found = fail_points.names(program)
    if not found:
        return []
    for point in [name for name in found if name in WAYS]:
        numbers = WAYS[point][1]
        add(numbers, f"killed_at_{point}", killed_at(point))
        add((*numbers, 27), f"stopped_at_{point}", stopped_at(point))
    for point in ("arbiter.before_install", "arbiter.installed"):
        what = "request" if point == "arbiter.before_install" else "answer"
        add((17, 22, 23), f"partition_with_lost_{what}", answer_lost(point, when_cut_off))
        add((22,), f"failover_with_lost_{what}", answer_lost(point, when_ordered))
    add((4, 5), "epoch_refused", epoch_refused)
    add((36,), "scan_fails", scan_fails)
    add((31,), "load_fails", load_fails)
    # Those of disks have a test of their own, with a guest that has some: tests/disk_fault_real_test.py.
    return [name for name in found if name not in WAYS and not name.startswith("disk.")]
