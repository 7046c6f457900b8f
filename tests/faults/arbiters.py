# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The arbiter of a Scene, and what is done to it: `--arbiter file`, `etcd` (one member) or `etcd3` (three).

Each kind has: `keys`, what World.configure takes; `read` and `write`, past the daemons; `hold`, so that
whoever asks gets no answer; `lose_member` and `mend`.
"""

import base64
import json
import os
import subprocess
import sys
import uuid

from etcd import Etcd
from world import WorldError, wait_until

ARBITERS = ("file", "etcd", "etcd3")
GUEST_NAMESPACE = uuid.UUID("ed534030-7237-4404-9e62-412fa26e1874")  # docs/operating.md


def make(kind, world):
    return FileArbiter(world) if kind == "file" else EtcdArbiter(world, 3 if kind == "etcd3" else 1)


class FileArbiter:
    keys = "arbiter"

    def __init__(self, world):
        self.dir = os.path.join(world.dir, self.keys)

    def read(self, guest="vm1"):
        with open(os.path.join(self.dir, f"{guest}.json"), encoding="utf-8") as file:
            return file.read()

    def write(self, text, guest="vm1"):
        """None: there is no record any more."""
        record = os.path.join(self.dir, f"{guest}.json")
        if text is None:
            os.remove(record)
            return
        with open(record + ".by-hand", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(record + ".by-hand", record)

    def hold(self, _):
        return FileHeld(self.dir)

    def lose_member(self, _):
        """It has none. Returns what was done, in words."""
        return ""

    def mend(self):
        pass


class FileHeld:
    """Nobody gets an answer from the file arbiter as long as another process has its lock."""
    how = "its lock is held"

    def __init__(self, directory, guest="vm1"):
        program = ("import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX); "
                   "print('held', flush=True); sys.stdin.read()")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, os.path.join(directory, f"{guest}.lock")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def release(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class EtcdArbiter:
    def __init__(self, world, members):
        self.etcd = Etcd(world, members)
        self.keys = self.etcd.arbiter()
        self.members = range(members)
        self.away = None  # (way, member): the one that was lost
        self.whole = True

    def read(self, guest="vm1"):
        found = self._must("/v3/kv/range", key=key_of(guest))
        return base64.b64decode(found["kvs"][0]["value"]).decode()

    def write(self, text, guest="vm1"):
        """None: there is no record any more."""
        if text is None:
            self._must("/v3/kv/deleterange", key=key_of(guest))
        else:
            self._must("/v3/kv/put", key=key_of(guest), value=base64.b64encode(text.encode()).decode())

    def hold(self, chance):
        """Hung: requests arrive, and are carried out when it goes on, which is after they were given up. Cut
        off: they do not arrive. Killed: refused at once. Of a cluster all members, or so many that the rest
        may not decide."""
        self.whole = False
        number = chance.choice((len(self.members), len(self.members) // 2 + 1))
        return EtcdHeld(self, chance.choice(tuple(WAYS)), chance.sample(self.members, number))

    def lose_member(self, chance):
        """A cluster goes on without one, whichever it is. Returns what was done, in words."""
        if len(self.members) < 3:
            return ""
        if self.away is not None:
            raise WorldError("a member of etcd is lost already")
        self.whole, leader = False, self.etcd.leader()
        way, member = chance.choice(tuple(WAYS)), chance.choice(self.members)
        if leader is not None and chance.random() < 0.5:  # Its loss costs an election.
            member = leader
        self.away = way, member
        do(self.etcd, way, (member,))
        return f"{'leader' if member == leader else 'follower'} of etcd {way}"

    def mend(self):
        """Whole again, whatever was done to it and is over."""
        if self.away is not None:
            way, member = self.away
            self.away = None
            undo(self.etcd, way, (member,))
        for member in () if self.whole else self.members:
            wait_until(f"member {member} of etcd", lambda: self.etcd.is_healthy(member), 20)
        self.whole = True

    def _must(self, path, **body):
        answer = self.etcd.ask(path, json.dumps(body))
        if answer is None:
            raise WorldError(f"etcd does not answer {path}")
        return answer


class EtcdHeld:
    def __init__(self, arbiter, way, members):
        self.arbiter, self.way, self.members = arbiter, way, members
        self.how = f"{len(members)} of {len(arbiter.members)} {way}"
        do(arbiter.etcd, way, members)

    def release(self):
        undo(self.arbiter.etcd, self.way, self.members)


# How a member is lost: what is done, and what takes it back.
WAYS = {
    "hung": (Etcd.pause, Etcd.resume),
    "cut off": (Etcd.cut, Etcd.heal),
    "killed": (Etcd.kill, lambda etcd, member: etcd.start(member, wait=False)),
}


def do(etcd, way, members):
    for member in members:
        WAYS[way][0](etcd, member)


def undo(etcd, way, members):
    for member in members:
        WAYS[way][1](etcd, member)


def key_of(guest):
    name = f"/remusd/v1/vm/{uuid.uuid5(GUEST_NAMESPACE, guest)}/owner"
    return base64.b64encode(name.encode()).decode()
