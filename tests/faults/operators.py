# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""What people do to a pair at the wrong moment, or without the right to."""

import json
import os
import socket
import subprocess
import time

from catalogue import scenario
from hosts import EITHER, in_background
from network import in_namespace
from scene import MONITOR_PORT, Expect
from world import WorldError, wait_until


@scenario(41)
def failover_from_both_sides(scene):
    """Ordered on both hosts at about the same time, more than once."""
    scene.moment()
    hosts = [scene.primary, scene.backup] * scene.chance.randrange(1, 3)
    scene.chance.shuffle(hosts)
    begin = time.monotonic()
    orders = []
    for host in hosts:
        orders.append(in_background(host, "failover", "vm1"))
        scene.moment(0.0, 0.03)
    for order in orders:
        order.communicate(timeout=60)
    return begin, time.monotonic(), Expect("backup")


@scenario(41)
def failover_and_unprotect(scene):
    """One operator orders a failover, another one the end of protection."""
    scene.moment()
    begin = time.monotonic()
    orders = [(scene.backup if scene.chance.random() < 0.5 else scene.primary, "failover"),
              (scene.primary, "unprotect")]
    scene.chance.shuffle(orders)
    running = []
    for host, verb in orders:
        running.append(in_background(host, verb, "vm1"))
        scene.moment(0.0, 0.03)
    for order in running:
        order.communicate(timeout=60)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(39, proxied=True)
def failover_during_first_sync(scene):
    """There is nothing to fail over to yet: refused on both sides, and the sync goes on."""
    scene.primary.must("unprotect", "vm1")
    scene.cable(to={"rate": 6 << 20})
    started = in_background(scene.primary, "protect", "vm1", "--peer", scene.backup.name, "--timeout", "60s")
    begin = time.monotonic()
    try:
        scene.primary.wait_state("syncing", timeout=20)
        for host in (scene.primary, scene.backup):
            refused = host.cli("failover", "vm1")
            if refused.returncode != 6:
                raise WorldError(f"failover on {host.name} in the first sync: exit {refused.returncode}: "
                                 f"{(refused.stderr or refused.stdout).strip()}")
    finally:
        scene.cable()
        said = started.communicate(timeout=70)[1]
    if started.returncode != 0:
        raise WorldError(f"the first sync was not completed: {said.strip()}")
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(46)
def user_without_rights(scene):
    """A local user may neither see nor move anything."""
    begin = time.monotonic()
    for host in (scene.primary, scene.backup):
        os.chmod(scene.world.dir, 0o755)  # The socket's own rights are what is tested.
        for verb in (("failover", "vm1"), ("stop", "vm1"), ("status", "vm1"), ("list",)):
            done = subprocess.run(
                host.ns.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                                host.program, "--api", host.api, *verb),
                capture_output=True, text=True, timeout=30, check=False)
            if done.returncode == 0 or "vm1" in done.stdout or not done.stderr.strip():
                raise WorldError(f"nobody may {verb[0]}: exit {done.returncode}: {done.stdout}{done.stderr}")
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(37, monitor=True)
def stopped_by_somebody_else(scene):
    """An operator stops and continues the guest through a monitor of his own, between and in epochs."""
    scene.moment()
    begin = time.monotonic()
    orders = []
    for _ in range(scene.chance.randrange(1, 20)):
        orders += [{"execute": "stop"}, {"execute": "cont"}]
    qmp(scene, *orders)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(37, monitor=True)
def migrated_by_somebody_else(scene):
    """An operator saves the guest into a file while it is protected."""
    scene.moment()
    begin = time.monotonic()
    qmp(scene, {"execute": "migrate", "arguments": {"uri": "exec:cat >/dev/null"}})
    scene.moment(0.5, 3.0)
    qmp(scene, {"execute": "migrate_cancel"}, {"execute": "cont"})
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(37, monitor=True)
def device_plugged_in(scene):
    """A device that the standby does not have: its state must never be what a replica is to be made from. It
    stays, so the guest cannot be protected again until that is undone."""
    scene.moment()
    qmp(scene, {"execute": "device_add", "arguments": {"driver": "virtio-balloon-pci", "id": "plugged"}})
    begin = time.monotonic()
    if scene.chance.random() < 0.5:  # Its host dies at the same time: the replica is of before.
        begin, end = scene.kill(scene.primary)
        return begin, end, Expect("backup")
    status = scene.primary.wait_state("unprotected")
    if "plugged" not in status["reason"]:
        raise WorldError(f"the reason does not tell: {status['reason']}")
    refused = scene.primary.cli("protect", "vm1", "--peer", scene.backup.name, "--timeout", "20s")
    if refused.returncode != 6 or "plugged" not in refused.stderr:
        raise WorldError(f"protected again: exit {refused.returncode}: {refused.stderr.strip()}")
    qmp(scene, {"execute": "device_del", "arguments": {"id": "plugged"}})
    wait_until("the device to be gone", lambda: "plugged" not in devices(scene), 20)
    return begin, time.monotonic(), Expect("primary", turns=1)


def qmp(scene, *orders):
    """Gives them one after the other; what QEMU refuses is refused."""
    answers = []

    def give():
        with socket.create_connection(("127.0.0.1", MONITOR_PORT), timeout=10) as plug:
            words = plug.makefile("rw", encoding="utf-8")
            words.readline()
            for order in ({"execute": "qmp_capabilities"}, *orders):
                words.write(json.dumps(order) + "\n")
                words.flush()
                answer = {}
                while not {"return", "error"} & set(answer):
                    answer = json.loads(words.readline() or '{"error": 1}')
                answers.append(answer)

    in_namespace(scene.primary.ns, give)
    return answers


def devices(scene):
    listed = qmp(scene, {"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}})[-1]
    return [entry["name"] for entry in listed["return"]]


@scenario(41, 22)
def failover_without_arbiter(scene):
    """Ordered while the arbiter does not answer: silence until it does, then one side."""
    held = scene.hold_arbiter()
    begin = time.monotonic()
    try:
        orders = [in_background(scene.backup, "failover", "vm1")]
        wait_until("the backup to know that it does not know",
                   lambda: scene.status(scene.backup).get("state") == "frozen", 15)
        scene.moment(0.0, 1.0)
    finally:
        held.release()
    for order in orders:
        order.communicate(timeout=60)
    return begin, time.monotonic(), Expect(*EITHER)
