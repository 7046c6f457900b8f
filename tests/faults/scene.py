# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""One pair that faults are done to, round after round, and the judgement after each.

A Scene is a World (tests/world) with ears on the switch and, where wanted, cables that can be spoilt. The
guest moves between the hosts from round to round: `primary` runs it, `backup` keeps its replica. Booting is
slow, so a world is used until a round leaves nothing to go on with.
"""

import json
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "world"))
import arbiters  # noqa: E402
import fail_points  # noqa: E402
from failover import boot  # noqa: E402
from world import GUEST_IP, World, WorldError, run, wait_until  # noqa: E402

# Generous: other work on this machine must not look like a fault.
HEARTBEAT_MS, HEARTBEAT_LOST = 50, 10
LOST_S = HEARTBEAT_MS * HEARTBEAT_LOST / 1000
SETTLE_S = 30
QUIET_S = 0.5
IN_FLIGHT = 4
PROXY_PORT, MONITOR_PORT = 7280, 7290
MONITOR = ["-chardev", f"socket,id=operator,host=127.0.0.1,port={MONITOR_PORT},server=on,wait=off",
           "-mon", "chardev=operator,mode=control"]
RUNS, KEEPS = ("protected", "unprotected", "running"), ("standby",)


class Talker:
    """A helper process in a namespace that answers each line with one JSON line."""

    def __init__(self, namespace, program, *arguments):
        self.process = subprocess.Popen(
            namespace.command(sys.executable, "-u", os.path.join(HERE, program), *arguments),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._answer()

    def ask(self, line=""):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise WorldError(f"{self.process.args[-5:]} ended")
        return json.loads(line)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Needs:
    """What kind of world a scenario needs; worlds of the same kind are shared."""

    def __init__(self, proxied=False, fail_points=False, monitor=False, **protection):
        self.proxied, self.fail_points, self.protection = proxied, fail_points, protection
        self.monitor = monitor  # an operator's own, on each host's loopback at MONITOR_PORT

    def key(self):
        return (self.proxied, self.fail_points, self.monitor, tuple(sorted(self.protection.items())))


class Expect:
    """What may be the case after a fault. heard: roles of which one must be heard at last ("nobody" allows
    silence: the host that had the right to run died, or its guest did). turns: as often as the guest may have
    been heard from another host than before, and one. told: somebody must say why it is not protected now."""

    def __init__(self, *heard, turns=2, told=True, protected=False, session=True):
        self.heard, self.turns, self.told, self.protected = heard, turns, told, protected
        self.session = session  # the client's TCP session must have gone on


class Scene:
    def __init__(self, needs, programs, chance, arbiter="file"):
        self.needs, self.programs, self.chance = needs, programs, chance
        self.kind, self.arbiter = arbiter, None  # arbiters.ARBITERS, and the one that is asked
        self.notes = []  # what chance chose in this round
        self.world = self.ears = None
        self.proxies, self.points = {}, {}
        self.dead = set()  # hosts whose daemon the round itself ended
        self.judged = {"lost": 0, "rolled_back": 0, "corrupt": 0, "faults": 0}

    # A world's life.

    def open(self):
        needs = self.needs
        # repair() decides who protects whom: a pair that mends itself would be ahead of it.
        self.world = World({"tracker": "auto", "epoch_ms": 25, "heartbeat_ms": HEARTBEAT_MS,
                            "heartbeat_lost": HEARTBEAT_LOST, "reprotect": False, **needs.protection})
        # Under TLS nobody on the way could reach the frames, and what lies below would go untested.
        self.world.tls = not needs.proxied
        self.world.__enter__()
        self.arbiter = arbiters.make(self.kind, self.world)
        for host in self.world.hosts.values():
            self.world.configure(host, arbiter=self.arbiter.keys)
            host.program = self.programs[needs.fail_points]
            if needs.fail_points:
                path = os.path.join(host.dir, "fail-points")
                self.points[host] = fail_points.FailPoints(path, host.program)
                host.environment = {"REMUSD_FAIL_POINT_TABLE": path}
            if needs.proxied:
                self._spoil_cable(host)
        more = {"extra_args": MONITOR} if needs.monitor else {}
        self.client = boot(self.world, _guest_options(), **more)
        self.primary, self.backup = self.world.a, self.world.b
        neighbour = run("ip", "-n", self.world.client_ns.name, "-j", "neigh", "show", GUEST_IP).stdout
        self.ears = Talker(self.world.client_ns, "ears.py", json.loads(neighbour)[0]["lladdr"],
                           "lan-a=a", "lan-b=b")
        self.protect()

    def close(self):
        if self.world is None:
            return
        for talker in [self.ears, *self.proxies.values()]:
            if talker is not None:
                talker.end()
        for points in self.points.values():
            points.close()
        self.world.close()
        self.world = self.ears = self.arbiter = None
        self.proxies, self.points = {}, {}
        self.judged = dict.fromkeys(self.judged, 0)

    def _spoil_cable(self, host):
        """The host reaches its peer through a proxy on itself."""
        peer, address = ("b", "10.78.0.2") if host.name == "a" else ("a", "10.78.0.1")
        folder = os.path.join(host.dir, "conf.d")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "proxy.toml"), "w", encoding="utf-8") as file:
            file.write(f'[peer.{peer}]\naddress = "127.0.0.1:{PROXY_PORT}"\n')
        self.proxies[host] = Talker(host.ns, "proxy.py", "127.0.0.1", str(PROXY_PORT), address, "7270")

    def protect(self, more=()):
        self.primary.must("protect", "vm1", "--peer", self.backup.name, "--timeout", "120s", *more,
                          timeout=130)

    # What faults are made of.

    def moment(self, low=0.1, high=1.0):
        """Lets it run for a while: when the fault comes is the experiment."""
        time.sleep(self.chance.uniform(low, high))

    def cable(self, host=None, **harm):
        """Spoils the cable that the host's own connections go through; by default the primary's."""
        return self.proxies[host or self.primary].ask(json.dumps(harm))

    def links(self, *lines):
        self.world.a.ns.links(*lines)

    def kill(self, host, cut_power=False):
        self.dead.add(host)
        return host.kill(cut_power)

    def kill_daemon(self, host, number=signal.SIGKILL):
        self.dead.add(host)
        begin = time.monotonic()
        host.daemon.send_signal(number)
        host.daemon.wait(timeout=30)
        return begin, time.monotonic()

    def revive(self, host):
        """A host that comes back from a power cut: nothing of it is left."""
        host.ns.signal(signal.SIGCONT)
        while host.ns.signal(signal.SIGKILL):
            time.sleep(0.002)
        if host.daemon is not None:
            host.daemon.wait()
        for end in self.world.hosts.values():  # The cable works again, whichever end was pulled.
            end.ns.links("link set repl up", "link set lan up", "neigh flush dev repl")
        if host in self.points:
            self.points[host].disarm()
        if self.needs.proxied:
            self.proxies.pop(host).end()
            self._spoil_cable(host)
        host.start()
        self.dead.discard(host)

    def hold_arbiter(self):
        """From now on nobody gets an answer from the arbiter, until what this returns is released."""
        held = self.arbiter.hold(self.chance)
        self.notes.append(held.how)
        return held

    def lose_arbiter_member(self):
        """Of an arbiter that is a cluster one member fails, and the others go on; else this is nothing."""
        lost = self.arbiter.lose_member(self.chance)
        if lost:
            self.notes.append(lost)
            self.moment(0.0, LOST_S)

    def guests(self, host):
        """The QEMU processes on a host."""
        found = []
        for pid in host.ns.pids():
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                    if file.read().startswith("qemu-system"):
                        found.append(pid)
            except OSError:
                pass
        return found

    def status(self, host):
        """What the host's daemon says; {} when it cannot be asked or knows nothing."""
        if host.daemon is None or host.daemon.poll() is not None:
            return {}
        done = host.cli("status", "vm1", "--json", timeout=20)
        return json.loads(done.stdout) if done.returncode in (0, 3) else {}

    # Judgement.

    def settle(self, expect):
        """Waits until one host runs the guest and the other does not, and both agree that it is over; returns
        the host that runs it, None when the time is over or nobody can. A pair that calls itself protected
        must commit more than can have been in flight: it may not have noticed yet."""
        deadline = time.monotonic() + SETTLE_S
        acked = None
        while time.monotonic() < deadline:
            told = {host: self.status(host) for host in self.world.hosts.values()}
            self.told = told
            states = {host: words.get("state", "gone") for host, words in told.items()}
            runs = [host for host, state in states.items()
                    if state in RUNS and told[host].get("role") == "primary"]
            open_end = [state for host, state in states.items()
                        if host not in runs and state not in ("gone", "stopped", "fenced", "failed", *KEEPS)]
            keeps = [host for host, state in states.items() if state in KEEPS]
            if len(runs) == 1 and not open_end and bool(keeps) == (states[runs[0]] == "protected"):
                if not keeps:
                    return runs[0]
                now = told[runs[0]]["epochs"]["acked"]
                if acked is not None and now > acked + IN_FLIGHT:
                    return runs[0]
                acked = now if acked is None else acked
            else:
                acked = None
            if not runs and not open_end and not keeps and "nobody" in expect.heard:
                return None
            time.sleep(0.05)
        return None

    def judge(self, begin, end, expect):
        """Looks at what the round left: {lost, rolled_back, heard_twice, heard, wrong: [text]}."""
        found = {"lost": 0, "rolled_back": 0, "heard_twice": 0, "heard": "nobody", "silent_ms": None,
                 "wrong": []}
        wrong = found["wrong"]
        roles = {self.primary: "primary", self.backup: "backup"}
        for host in self.world.hosts.values():
            if host not in self.dead and host.daemon.poll() is not None:
                wrong.append(f"the daemon on {host.name} ended with {host.daemon.returncode}")
        runs = self.settle(expect)
        quiet = runs is None and "nobody" in expect.heard
        if runs is None and not quiet:
            wrong.append("nobody runs the guest: " + self._states())
        if not quiet:
            self._hear(found, begin, end, expect)
        turns = self.ears.ask()
        hosts = [turn[0] for turn in turns]
        # A guest that stayed where it was has never been heard from elsewhere.
        stayed = runs is not None and roles[runs] == "primary"
        found["heard_twice"] = int(len(turns) > (1 if stayed else expect.turns))
        if found["heard_twice"]:
            wrong.append("heard in turn: " + ", ".join(
                f"{host} {first - begin:+.3f}..{last - begin:+.3f} s ({frames} frames, the first {frame})"
                for host, first, last, frames, frame in turns))
        if quiet:
            time.sleep(QUIET_S)
            for host, _, _, frames, frame in self.ears.ask():
                wrong.append(f"{host} is heard, and runs nothing ({frames} frames, the first {frame})")
        if runs is not None:
            found["heard"] = roles[runs]
            if found["heard"] not in expect.heard:
                wrong.append(f"the {found['heard']} runs it, not the {' or '.join(expect.heard)}")
            if not hosts or hosts[-1] != runs.name:
                wrong.append(f"{runs.name} runs it, but is not the one that is heard ({turns})")
            state = self.told[runs].get("state")
            if expect.protected and state != "protected":
                wrong.append(f"it is {state}: {self.told[runs].get('reason', '')}")
            if expect.told and state != "protected" and not self.told[runs].get("reason"):
                wrong.append("nobody says why it is not protected")
        self.runs = runs
        return found

    def _hear(self, found, begin, end, expect):
        """The client's own view. It keeps its books over all rounds: what is new counts."""
        wrong = found["wrong"]
        went_on = self._goes_on(end, expect)
        found["silent_ms"] = self.client.ask(f"silence {begin}")["udp_ms"]
        seen = self.client.ask(f"finish {begin} {end}", timeout=60)
        self.client.ask("continue")
        now = {"lost": seen["requests_lost_after_ack"], "rolled_back": seen["replies_rolled_back"],
               "corrupt": seen["guest_memory_corrupt"] or 0, "faults": len(seen["faults"])}
        new = {key: now[key] - self.judged[key] for key in now}
        self.judged = now
        found["lost"], found["rolled_back"] = new["lost"], new["rolled_back"]
        if not went_on:
            wrong.append(f"the session did not go on ({seen['tcp_closed'] or 'silent'})")
        if any(new.values()) or seen["tcp_faults"] or seen["unaudited"]:
            wrong.append(f"lost {new['lost']}, rolled back {new['rolled_back']}, corrupt {new['corrupt']}, "
                         f"TCP faults {seen['tcp_faults']}, unaudited {seen['unaudited']}: "
                         f"{seen['faults'][-3:]}")

    def _goes_on(self, since, expect, replies=60, timeout=20):
        start = self.client.ask("progress")

        def enough():
            seen = self.client.ask("progress")
            fresh = seen["last_reply"] is not None and seen["last_reply"] > since
            words = seen["tcp_messages"] >= start["tcp_messages"] + replies // 3
            return fresh and seen["replies"] >= start["replies"] + replies and (words or not expect.session)

        try:
            return bool(wait_until("the session to go on", enough, timeout))
        except WorldError:
            return False

    def _states(self):
        return ", ".join(f"{host.name} {words.get('state', 'gone')} ({words.get('reason', '')})"
                         for host, words in self.told.items())

    def repair(self):
        """A protected pair again, for the next round; WorldError when this world cannot be one."""
        if self.runs is None:
            raise WorldError("the guest is gone")
        other = self.world.b if self.runs is self.world.a else self.world.a
        self.primary, self.backup = self.runs, other
        for host in self.points:
            self.points[host].disarm()
        for host in self.proxies:
            self.cable(host)
        self.arbiter.mend()
        if self.status(self.primary).get("state") != "protected" or self.dead:
            self.revive(other)
            self.protect()
        self.dead.clear()
        self.ears.ask()


def _guest_options():
    class Options:
        nic, vcpus, machine, dirty = "virtio-net-pci", 1, "pc", 2000
    return Options
