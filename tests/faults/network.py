# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Faults of the cable between the hosts, of the arbiter, and of both at once."""

import json
import os
import socket
import threading
import time

from catalogue import scenario
from scene import LOST_S, Expect
from world import WorldError, wait_until

EITHER = ("primary", "backup")


@scenario(17, 23)
def partition(scene):
    """Both hosts live and do not hear each other: both ask, one wins. A cluster that is asked has just lost a
    member, or loses one meanwhile."""
    scene.moment()
    sooner = scene.chance.random() < 0.5
    if sooner:
        scene.lose_arbiter_member()
    begin = time.monotonic()
    scene.links("link set repl down")
    if not sooner:
        scene.moment(0.0, LOST_S)
        scene.lose_arbiter_member()
    return begin, begin, Expect(*EITHER)


@scenario(17, 38, arbiters=("etcd", "etcd3"))
def host_cut_off(scene):
    """All cables of one host are pulled, and everything on it lives: the other one goes on. (A file is
    reached without a cable: either could win, also the one that cannot be heard.)"""
    scene.moment()
    hosts = [scene.primary, scene.backup]
    scene.chance.shuffle(hosts)
    cut_off, other = hosts
    role = "primary" if other is scene.primary else "backup"
    scene.lose_arbiter_member()
    begin = time.monotonic()
    cut_off.ns.links("link set repl down", "link set lan down")
    cut_off.wait_state("frozen", timeout=15)
    other.wait_state("unprotected", timeout=15)
    scene.moment(0.0, 2.0)
    cut_off.ns.links(*(f"link set {cable} up" for cable in scene.chance.sample(("repl", "lan"), 2)))
    return begin, begin, Expect(role)


@scenario(18, proxied=True)
def one_way_partition(scene):
    """One direction is silent, the other is whole."""
    scene.moment()
    scene.lose_arbiter_member()
    begin = time.monotonic()
    scene.cable(**{scene.chance.choice(("to", "back")): {"hold": True}})
    scene.settle(Expect(*EITHER))
    scene.cable()  # It heals: what was on the way arrives after the decision.
    return begin, begin, Expect(*EITHER)


@scenario(19)
def flapping_link(scene):
    """Down and up again, shorter and longer than the hosts are patient."""
    scene.moment()
    scene.lose_arbiter_member()
    begin = time.monotonic()
    for _ in range(scene.chance.randrange(2, 6)):
        scene.links("link set repl down")
        scene.moment(0.02, 1.2 * LOST_S)
        scene.links("link set repl up")
        scene.moment(0.02, LOST_S)
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(19, 8, proxied=True)
def connection_reset(scene):
    """The connection breaks, whatever was on the way is lost, both hosts live."""
    scene.moment()
    begin = time.monotonic()
    scene.cable(cut=True)
    return begin, begin, Expect(*EITHER)


@scenario(9, proxied=True)
def flipped_bit(scene):
    scene.moment()
    begin = time.monotonic()
    scene.cable(**{scene.chance.choice(("to", "back")): {"flip_after": scene.chance.randrange(20000)}})
    return wait_for_harm(scene, begin)


@scenario(4, 11, proxied=True)
def truncated_stream(scene):
    """The connection ends in the midst of a frame."""
    scene.moment()
    begin = time.monotonic()
    scene.cable(**{scene.chance.choice(("to", "back")): {"cut_after": scene.chance.randrange(1, 50000)}})
    return wait_for_harm(scene, begin)


def wait_for_harm(scene, begin):
    """Until somebody has noticed; a flipped bit in a length may take ack_timeout."""
    def noticed():
        return scene.status(scene.primary).get("state") != "protected"

    wait_until("the harm to be noticed", noticed, 25)
    end = time.monotonic()
    return begin, end, Expect(*EITHER)


@scenario(11, 28, proxied=True)
def trickling_bytes(scene):
    """A cable that carries little, in small pieces: slow is not dead, and nothing is taken back."""
    scene.moment()
    begin = time.monotonic()
    scene.cable(**{scene.chance.choice(("to", "back")): {
        "piece": scene.chance.randrange(1, 64), "rate": scene.chance.choice((2000, 20000, 200000))}})
    scene.moment(1.0, 3.0)
    scene.cable()
    return begin, time.monotonic(), Expect(*EITHER)


@scenario(28, proxied=True)
def slow_link(scene):
    """Slower than the guest dirties memory: epochs get longer, the guest stays protected."""
    scene.moment()
    begin = time.monotonic()
    scene.cable(to={"delay_ms": scene.chance.randrange(1, 40), "rate": scene.chance.randrange(1, 8) << 20})
    scene.moment(2.0, 4.0)
    scene.cable()
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(20)
def arbiter_down(scene):
    """The pair is whole: nobody needs the arbiter."""
    held = scene.hold_arbiter()
    begin = time.monotonic()
    try:
        before = scene.status(scene.primary)["epochs"]["acked"]
        scene.moment(1.0, 3.0)
        if scene.status(scene.primary)["epochs"]["acked"] < before + 10:
            raise WorldError("no progress without the arbiter")
    finally:
        held.release()
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


@scenario(21, 22)
def partition_without_arbiter(scene):
    """Nobody may guess: silence until the arbiter answers, then one side."""
    scene.moment()
    held = scene.hold_arbiter()
    begin = time.monotonic()
    try:
        scene.links("link set repl down")
        frozen(scene)
        scene.moment(0.2, 2.0)
        silence(scene, 0.5)
    finally:
        held.release()
    end = time.monotonic()
    return begin, end, Expect(*EITHER)


@scenario(25)
def record_lost(scene):
    """A record that is gone, or older than one that was seen, names no winner: both freeze until it is
    restored."""
    scene.moment()
    record = scene.arbiter.read()
    older = {**json.loads(record), "nonce": "older"}
    older["generation"] -= 1
    gone = scene.chance.random() < 0.5
    scene.notes.append("it was gone" if gone else "it was rolled back")
    scene.arbiter.write(None if gone else json.dumps(older))
    begin = time.monotonic()
    try:
        scene.links("link set repl down")
        frozen(scene)
        silence(scene, 0.5)
    finally:
        scene.arbiter.write(record)
    end = time.monotonic()
    return begin, end, Expect(*EITHER)


def frozen(scene):
    for host in scene.world.hosts.values():
        host.wait_state("frozen", timeout=15)


def silence(scene, seconds):
    """Nobody is heard while nobody knows."""
    turns = scene.ears.ask()
    time.sleep(seconds)
    heard = scene.ears.ask()
    if heard:
        raise WorldError(f"heard while both are frozen: {heard}")
    return turns


@scenario(43, 10)
def stranger(scene):
    """Somebody connects who is no peer: garbage, silence, half a frame, too many connections."""
    begin = time.monotonic()
    target = ("10.78.0.1" if scene.primary.name == "a" else "10.78.0.2",
              "10.78.0.1" if scene.backup.name == "a" else "10.78.0.2")
    seeds = [scene.chance.randrange(1 << 30) for _ in range(12)]
    connections = []

    def annoy():  # In the other host's namespace, from where both can be reached.
        import random
        for seed in seeds:
            chance = random.Random(seed)
            plug = socket.socket()
            plug.settimeout(2)
            try:
                plug.connect((chance.choice(target), 7270))
                kind = chance.randrange(3)
                if kind == 0:
                    plug.sendall(chance.randbytes(chance.randrange(1, 100000)))
                if kind == 1:  # A frame's magic, and lengths as large as they get.
                    plug.sendall(b"REM1" + b"\xff" * chance.randrange(1, 200))
                connections.append(plug)
            except OSError:
                plug.close()

    in_namespace(scene.backup.ns, annoy)
    scene.moment(0.3, 1.0)
    for plug in connections:
        plug.close()
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)


def in_namespace(namespace, body):
    """Runs `body` in a thread of its own, which alone enters the namespace."""
    problems = []

    def inside():
        try:
            with open(f"/run/netns/{namespace.name}", "rb") as file:
                import ctypes
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
                    raise WorldError("cannot enter the namespace")
            body()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]


@scenario(45, 7, proxied=True)
def replayed_session(scene):
    """What a whole session sent is sent again, word for word, when it is over."""
    scene.primary.must("unprotect", "vm1")
    record = os.path.join(scene.world.dir, "session")
    scene.cable(record=record)
    scene.protect()
    scene.moment()
    scene.primary.must("unprotect", "vm1")
    begin = time.monotonic()
    with open(record, "rb") as file:
        words = file.read()
    target = "10.78.0.1" if scene.backup.name == "a" else "10.78.0.2"
    log_size = os.path.getsize(scene.backup.log)

    def replay():
        with socket.create_connection((target, 7270), timeout=5) as plug:
            plug.settimeout(5)
            try:
                plug.sendall(words)
            except OSError:
                pass  # Refused in the midst of it.

    protected_meanwhile = scene.chance.random() < 0.5
    if protected_meanwhile:
        scene.protect()
    in_namespace(scene.primary.ns, replay)

    def refused():
        with open(scene.backup.log, encoding="utf-8", errors="replace") as log:
            log.seek(log_size)
            return [line for line in log if "generation" in line and "not generation" in line
                    or "already holds" in line]

    wait_until("the replay to be refused", refused, 10)
    if not protected_meanwhile:
        scene.protect()
    return begin, time.monotonic(), Expect("primary", turns=1, protected=True)
