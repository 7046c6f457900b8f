# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A real etcd for a World: one or more members in the client's namespace, on the LAN. Both hosts reach it,
and it survives the death of either.

    with World(...) as world:
        etcd = Etcd(world, members=3)
        for host in (world.a, world.b):
            world.configure(host, arbiter=etcd.arbiter())

The hosts' bridges get addresses on the LAN for it (10.77.0.11 and .12). World.close() ends it.
"""

import json
import os
import signal
import subprocess
import sys

from world import CLIENT_IP, WorldError, run, wait_until

ETCD = "/usr/bin/etcd"
HOST_ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12"}
PORT = 2379  # Of member 0; each further member has the next two.

ASK = ("import sys, urllib.request; "
       "sys.stdout.write(urllib.request.urlopen(sys.argv[1], sys.argv[2].encode(), float(sys.argv[3]))"
       ".read().decode())")


class Etcd:
    def __init__(self, world, members=1):
        self.ns = world.client_ns
        self.dir = os.path.join(world.dir, "etcd")
        os.makedirs(self.dir, exist_ok=True)
        if not os.access(ETCD, os.X_OK):
            raise WorldError(f"{ETCD} is missing (package etcd-server)")
        self.processes = [None] * members
        world.servers.append(self)
        for host in world.hosts.values():
            host.ns.links(f"addr replace {HOST_ADDRESSES[host.name]}/24 dev br0")
        for member in range(members):
            self.start(member, wait=False)
            # Members that start all at once wait 2 s for each other's first words.
            wait_until(f"member {member} of etcd to hear its peers",
                       lambda: "listening for peers on" in self.tail(member, 1000), 20)
        wait_until("etcd to have a leader", self.is_healthy, 20)

    def url(self, member):
        return f"http://{CLIENT_IP}:{PORT + 2 * member}"

    def arbiter(self):
        """What Host.configure takes as the arbiter."""
        return {"kind": "etcd", "endpoints": [self.url(member) for member in range(len(self.processes))]}

    def start(self, member=0, wait=True):
        """Starts a member, also one that was killed: its data is still there."""
        def peer(number):
            return f"http://{CLIENT_IP}:{PORT + 2 * number + 1}"

        everybody = ",".join(f"m{number}={peer(number)}" for number in range(len(self.processes)))
        with open(self.logs()[member], "ab") as log:
            self.processes[member] = subprocess.Popen(
                self.ns.command(ETCD, f"--name=m{member}", f"--data-dir={self.dir}/m{member}",
                                f"--listen-client-urls={self.url(member)}",
                                f"--advertise-client-urls={self.url(member)}",
                                f"--listen-peer-urls={peer(member)}",
                                f"--initial-advertise-peer-urls={peer(member)}",
                                f"--initial-cluster={everybody}", "--heartbeat-interval=20",
                                "--election-timeout=200", "--unsafe-no-fsync"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        if wait:
            wait_until(f"member {member} of etcd", lambda: self.is_healthy(member), 20)

    def ask(self, path, body="{}", member=0, timeout=2):
        """POST to a member; its answer, or None when there is none in time."""
        done = run(*self.ns.command(sys.executable, "-c", ASK, self.url(member) + path, body, str(timeout)),
                   check=False, timeout=timeout + 20)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def is_healthy(self, member=0):
        """True when this member answers a linearizable read."""
        if self.processes[member].poll() is not None:
            raise WorldError(f"member {member} of etcd ended:\n{self.tail(member)}")
        return self.ask("/v3/kv/range", '{"key":"AA=="}', member) is not None

    def leader(self):
        """The number of the leading member."""
        ids, leader = {}, None
        for member, process in enumerate(self.processes):
            found = self.ask("/v3/maintenance/status", member=member) if process.poll() is None else None
            if found:
                ids[found["header"]["member_id"]] = member
                leader = found.get("leader", leader)
        return ids.get(leader)

    def _signal(self, member, number):
        for one in range(len(self.processes)) if member is None else (member,):
            if self.processes[one].poll() is None:
                os.kill(self.processes[one].pid, number)

    # Each for one member, or for all.
    def pause(self, member=None):
        self._signal(member, signal.SIGSTOP)

    def resume(self, member=None):
        self._signal(member, signal.SIGCONT)

    def kill(self, member=None):
        self._signal(member, signal.SIGKILL)
        for one in range(len(self.processes)) if member is None else (member,):
            self.processes[one].wait()

    def stop(self, member=None):
        """In order."""
        self._signal(member, signal.SIGTERM)
        for one in range(len(self.processes)) if member is None else (member,):
            self.processes[one].wait(timeout=20)

    def end(self):
        for process in self.processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def logs(self):
        return [os.path.join(self.dir, f"m{member}.log") for member in range(len(self.processes))]

    def tail(self, member, lines=10):
        with open(self.logs()[member], encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-lines:])
