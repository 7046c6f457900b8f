# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A real etcd for a World: one or more members on the LAN, each in a namespace of its own. Both hosts reach
it, and it survives the death of either.

    with World(...) as world:
        etcd = Etcd(world, members=3)
        for host in (world.a, world.b):
            world.configure(host, arbiter=etcd.arbiter())

The hosts' bridges get addresses on the LAN for it (10.77.0.11 and .12), the members have 10.77.0.21 and
following. World.close() ends it.
"""

import json
import os
import signal
import subprocess
import sys

from world import Namespace, WorldError, run, wait_until

ETCD = "/usr/bin/etcd"
HOST_ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12"}
MEMBER_ADDRESS = "10.77.0.{}"
FIRST_MEMBER = 21
CLIENT_PORT, PEER_PORT = 2379, 2380

ASK = ("import sys, urllib.request; "
       "sys.stdout.write(urllib.request.urlopen(sys.argv[1], sys.argv[2].encode(), float(sys.argv[3]))"
       ".read().decode())")


class Etcd:
    def __init__(self, world, members=1):
        self.lan = world.client_ns
        self.dir = os.path.join(world.dir, "etcd")
        os.makedirs(self.dir, exist_ok=True)
        if not os.access(ETCD, os.X_OK):
            raise WorldError(f"{ETCD} is missing (package etcd-server)")
        self.processes = [None] * members
        world.servers.append(self)
        for host in world.hosts.values():
            host.ns.links(f"addr replace {HOST_ADDRESSES[host.name]}/24 dev br0")
        self.namespaces = [self._plug_in(world, member) for member in range(members)]
        for member in range(members):
            self.start(member, wait=False)
            # Members that start all at once wait 2 s for each other's first words.
            wait_until(f"member {member} of etcd to hear its peers",
                       lambda: "listening for peers on" in self.tail(member, 1000), 20)
        wait_until("etcd to have a leader", self.is_healthy, 20)

    def _plug_in(self, world, member):
        namespace = Namespace(f"{world.prefix}-m{member}")
        world.namespaces.append(namespace)
        self.lan.links(f"link add etcd{member} type veth peer name lan netns {namespace.name}",
                       f"link set etcd{member} master lan0 up")
        namespace.links(f"addr add {self.address(member)}/24 dev lan", "link set lan up")
        return namespace

    @staticmethod
    def address(member):
        return MEMBER_ADDRESS.format(FIRST_MEMBER + member)

    def url(self, member):
        return f"http://{self.address(member)}:{CLIENT_PORT}"

    def arbiter(self):
        """What Host.configure takes as the arbiter."""
        return {"kind": "etcd", "endpoints": [self.url(member) for member in range(len(self.processes))]}

    def start(self, member=0, wait=True):
        """Starts a member, also one that was killed: its data is still there."""
        def peer(number):
            return f"http://{self.address(number)}:{PEER_PORT}"

        everybody = ",".join(f"m{number}={peer(number)}" for number in range(len(self.processes)))
        with open(self.logs()[member], "ab") as log:
            self.processes[member] = subprocess.Popen(
                self.namespaces[member].command(
                    ETCD, f"--name=m{member}", f"--data-dir={self.dir}/m{member}",
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
        """POST to a member, from its own host; its answer, or None when there is none in time."""
        command = self.namespaces[member].command(sys.executable, "-c", ASK, self.url(member) + path, body,
                                                  str(timeout))
        done = run(*command, check=False, timeout=timeout + 20)
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

    def cut(self, member=None):
        """Nobody reaches it, and it reaches nobody."""
        self._cable(member, "down")

    def heal(self, member=None):
        self._cable(member, "up")

    def _cable(self, member, state):
        for one in range(len(self.processes)) if member is None else (member,):
            self.lan.links(f"link set etcd{one} {state}")

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
