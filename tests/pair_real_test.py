#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Real daemons, real QEMU, a real Linux guest, in network namespaces; judged by the client outside.

Needs root, /dev/net/tun, the built daemon (REMUSD_BUILD) and the guest image (scripts/guest-image.sh).
Numbers in brackets are those of the faults, in the catalogue of faults, that a test covers.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "world"))
from etcd import Etcd  # noqa: E402
from failover import boot, complaints, go_on, one_round, protect, protection, reboot  # noqa: E402
from world import REMUSD, World, run, wait_until  # noqa: E402

MAX_FAILOVER_MS = 1000  # Loose: machines that run tests are busy. The demo shows the real figure.


def options(**changes):
    fields = {"nic": "virtio-net-pci", "vcpus": 1, "machine": "pc", "tracker": "async", "epoch_ms": 25,
              "dirty": 2000}
    fields.update(changes)
    return argparse.Namespace(**fields)


def alone(chosen):
    """[protection] with which nothing protects the winner again: it is to be seen alone."""
    return {**protection(chosen), "reprotect": False}


def lost_packets(host):
    """Packets of the guest that the gates gave up, by the daemon's own count."""
    counters = ("remusd_netbuf_dropped_packets_total", "remusd_netbuf_discarded_packets_total")
    return sum(float(line.split()[-1]) for line in host.fetch("/metrics").splitlines()
               if line.startswith(counters))


class Failover(unittest.TestCase):
    """The host of the primary dies [1, 2]."""

    def check(self, found):
        self.assertEqual(found["complaints"], [])
        self.assertLess(found["failover_ms"], MAX_FAILOVER_MS)
        self.assertGreater(found["promote_ms"], 0)

    def test_virtio_one_vcpu_async(self):
        self.check(one_round(options(), 1.5))

    def test_e1000_four_vcpus_sync_q35(self):
        self.check(one_round(options(nic="e1000", vcpus=4, tracker="sync", machine="q35"), 1.5))

    def test_power_loss_without_a_word(self):
        self.check(one_round(options(vcpus=4, machine="q35"), 1.0, cut_power=True))

    def test_guest_that_dirties_much(self):
        self.check(one_round(options(dirty=20000), 1.0))

    def test_guest_reboots_after_failover(self):  # [35]
        self.check(one_round(options(), 1.0, and_reboot=True))

    def test_guest_with_e1000_reboots_after_failover(self):
        self.check(one_round(options(nic="e1000", machine="q35"), 1.0, and_reboot=True))


class Backup(unittest.TestCase):
    """The backup is lost [3]: the guest goes on, unprotected, and can be protected again."""

    def test_killed_and_protected_again(self):
        chosen = options()
        with World(protection(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            time.sleep(0.7)  # The moment is arbitrary.
            begin, end = world.b.kill()
            self.assertTrue(go_on(client, end), "the session did not go on")
            status = world.a.wait_state("unprotected")
            self.assertEqual(status["role"], "primary")
            self.assertTrue(status["reason"], "status must say why")
            self.assertEqual(world.a.cli("status", "vm1").returncode, 3)
            self.assertEqual(lost_packets(world.a), 0, "held packets must be let out, not lost")
            world.b.start()
            protect(world)
            self.assertEqual(world.a.wait_state("protected")["role"], "primary")
            begin, end = world.a.kill()
            go_on(client, end)
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])

    def test_unprotect_and_protect_again(self):
        chosen = options()
        with World(protection(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            world.a.must("unprotect", "vm1")
            self.assertEqual(world.a.wait_state("unprotected")["role"], "primary")
            now = time.monotonic()
            self.assertTrue(go_on(client, now))
            self.assertNotIn("standby", world.b.cli("list").stdout, "the backup must drop its standby")
            protect(world)
            self.assertTrue(go_on(client, time.monotonic()))
            found = client.ask("finish")
            self.assertTrue(found["tcp_survived"])
            self.assertEqual(found["replies_rolled_back"], 0)
            self.assertEqual(found["requests_lost_after_ack"], 0)
            self.assertEqual(found["faults"], [])


class Resync(unittest.TestCase):
    """What a host keeps of a guest that it lost spares the guest's way back most of the first sync."""

    def test_guest_goes_back_and_only_what_differs_is_sent(self):
        chosen = options()
        with World(protection(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            whole = world.a.status()["resync"]
            self.assertEqual(whole["pages_total"], 0)
            world.b.must("failover", "vm1")
            world.a.wait_state("fenced")
            wait_until("the guest's memory to be kept",
                       lambda: world.a.status()["residue_bytes"] > whole["sent_bytes"] // 2, 10)
            world.b.must("protect", "vm1", "--peer", "a", "--timeout", "60s", timeout=70)
            found = world.b.status()["resync"]
            differing = found["pages_total"] - found["pages_matched"]
            self.assertGreater(found["pages_matched"], 0.8 * found["pages_total"], found)
            self.assertLess(found["sent_bytes"], whole["sent_bytes"] // 2, (whole, found))
            print(f"resync: {found['sent_bytes']} bytes for {differing} pages of {found['pages_total']}; "
                  f"at first {whole['sent_bytes']} bytes", file=sys.stderr)
            self.assertEqual(world.a.status()["residue_bytes"], 0)
            begin, end = world.b.kill()
            self.assertTrue(go_on(client, end), "the session did not go on")
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])


class Stream(unittest.TestCase):
    def test_recorded_stream_satisfies_the_independent_decoder(self):
        chosen = options()
        with World(protection(chosen)) as world:
            record = os.path.join(world.dir, "stream")
            world.protection["record_path"] = record
            world.configure(world.a)
            boot(world, chosen)
            protect(world)
            wait_until("a hundred epochs", lambda: world.a.status()["epochs"]["acked"] >= 100, 30)
            world.a.must("unprotect", "vm1")
            decoder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "verify_stream.py")
            done = run(sys.executable, decoder, "--memory-pages", "65536", record, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            found = json.loads(done.stdout)
            self.assertGreaterEqual(found["epochs"], 100)
            self.assertGreater(found["pages"]["lz4"], 0)


class Attach(unittest.TestCase):
    def start_qemu(self, world, machine="pc"):
        """A guest that an operator started without us, with memory on a memfd and a stream netdev."""
        world.define_guest(machine=machine)
        boots, folder = world.boot_fields, world.dir
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-m", "256", "-nodefaults",
                   "-display", "none", "-vga", "none", "-machine", f"{machine},memory-backend=mem",
                   "-object", "memory-backend-memfd,id=mem,size=256M,share=on",
                   "-kernel", boots["kernel"], "-initrd", boots["initrd"], "-append", boots["append"],
                   "-qmp", f"unix:{folder}/own.qmp,server=on,wait=off",
                   "-netdev", f"stream,id=n0,server=on,addr.type=unix,addr.path={folder}/own.net",
                   "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:01,addr=5"]
        with open(os.path.join(folder, "own.log"), "wb") as log:
            process = subprocess.Popen(world.a.ns.command(*command), stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)
        wait_until("QEMU's monitor", lambda: os.path.exists(f"{folder}/own.qmp"), 20)
        with open(os.path.join(world.a.guests, "vm1.toml"), "w", encoding="utf-8") as file:
            file.write(f'name = "vm1"\naccelerator = "tcg"\n[attach]\nqmp = "{folder}/own.qmp"\n'
                       '[[nic]]\nbridge = "br0"\n')
        return process

    def test_guest_that_already_runs_is_protected_and_fails_over(self):
        with World(protection(options())) as world:
            process = self.start_qemu(world)
            try:
                world.a.start()
                world.b.start()
                world.a.must("start", "vm1")
                client = world.client()
                client.ask("connect")
                protect(world)
                self.assertEqual(world.a.status()["pid"], process.pid)
                self.assertTrue(go_on(client, time.monotonic()))
                begin, end = world.a.kill()
                go_on(client, end)
                self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
                reboot(client)
            finally:
                process.kill()
                process.wait()


class Split(unittest.TestCase):
    """Both hosts live, but do not hear each other: at most one may be heard."""

    def one_is_heard(self, world, client, begin):
        """Whichever side won: the session went on, nothing was taken back, and the loser's guest is gone."""
        self.assertTrue(go_on(client, begin), "nobody is heard")
        found = client.ask(f"finish {begin} {begin}")
        self.assertEqual(complaints(found), [])

        def settled():
            states = []
            for host in (world.a, world.b):
                done = host.cli("status", "vm1", "--json")
                states.append(json.loads(done.stdout)["state"] if done.returncode in (0, 3) else "gone")
            alive = [state for state in states if state == "unprotected"]
            ended = [state for state in states if state in ("gone", "fenced", "failed", "stopped")]
            return len(alive) == 1 and len(ended) == 1

        wait_until("one side running and the other ended", settled, 20)
        guests = [pid for host in (world.a, world.b) for pid in host.ns.pids() if is_qemu(pid)]
        self.assertEqual(len(guests), 1, "exactly one guest must be left")

    def test_link_between_the_hosts_is_cut(self):  # [17]
        chosen = options()
        with World(alone(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            begin = time.monotonic()
            world.a.ns.links("link set repl down")
            self.one_is_heard(world, client, begin)

    def test_primary_host_hangs_and_comes_back(self):  # [27, 38]
        chosen = options()
        with World(alone(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            begin = time.monotonic()
            world.a.ns.signal(signal.SIGSTOP)
            try:
                world.b.wait_state("unprotected")
            finally:
                world.a.ns.signal(signal.SIGCONT)
            self.one_is_heard(world, client, begin)

    def test_failover_by_command(self):
        chosen = options()
        with World(alone(chosen)) as world:
            client = boot(world, chosen)
            protect(world)
            begin = time.monotonic()
            world.b.must("failover", "vm1")
            self.assertEqual(world.b.wait_state("unprotected")["role"], "primary")
            self.one_is_heard(world, client, begin)


class Arbiter(unittest.TestCase):
    """etcd, on a host of its own, says who may run."""

    def pair(self, world, members):
        etcd = Etcd(world, members)
        for host in (world.a, world.b):
            world.configure(host, arbiter=etcd.arbiter())
        return etcd

    def test_failover_with_etcd(self):
        """Also without one of three members, whichever it is [20]."""
        chosen = options()
        with World(protection(chosen)) as world:
            etcd = self.pair(world, members=3)
            client = boot(world, chosen)
            protect(world)
            etcd.kill(etcd.leader())
            begin, end = world.a.kill()
            self.assertTrue(go_on(client, end), "the session did not go on")
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
            status = world.b.status()
            self.assertEqual((status["role"], status["generation"]), ("primary", 3))

    def test_etcd_down_while_the_pair_is_whole_harms_nobody(self):  # [20]
        chosen = options()
        with World(protection(chosen)) as world:
            etcd = self.pair(world, members=1)
            client = boot(world, chosen)
            protect(world)
            etcd.kill()
            acked = world.a.status()["epochs"]["acked"]
            self.assertTrue(go_on(client, time.monotonic()), "the session did not go on")
            wait_until("a hundred epochs without etcd",
                       lambda: world.a.status()["epochs"]["acked"] >= acked + 100, 30)
            for host, state in ((world.a, "protected"), (world.b, "standby")):
                self.assertEqual(host.status()["state"], state)
            etcd.start()
            begin, end = world.a.kill()
            go_on(client, end)
            self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])


class Daemon(unittest.TestCase):
    def test_death_of_the_primary_daemon_alone_hangs_no_guest(self):
        """The guest that lost its protector must not hang in a fault that nobody answers."""
        for tracker in ("async", "sync"):
            with self.subTest(tracker=tracker):
                chosen = options(tracker=tracker)
                with World(protection(chosen)) as world:
                    client = boot(world, chosen)
                    protect(world)
                    qemu = world.a.status()["pid"]
                    begin = time.monotonic()
                    world.a.daemon.kill()
                    world.a.daemon.wait()
                    end = time.monotonic()
                    go_on(client, end)
                    self.assertEqual(complaints(client.ask(f"finish {begin} {end}")), [])
                    before = cpu_ticks(qemu)
                    if before is not None:  # Still there: it must run, unheard, not hang.
                        wait_until("the old guest to make progress",
                                   lambda: cpu_ticks(qemu) is None or cpu_ticks(qemu) > before, 10)


class Metrics(unittest.TestCase):
    def test_are_clean_and_health_is_told(self):
        chosen = options()
        with World(protection(chosen)) as world:
            boot(world, chosen)
            protect(world)
            text = world.a.fetch("/metrics")
            for series in ("remusd_build_info", "remusd_epoch_pause_seconds_bucket", "remusd_epochs_total"):
                self.assertIn(series, text)
            checked = run("promtool", "check", "metrics", stdin=text, check=False)
            self.assertEqual((checked.returncode, checked.stderr + checked.stdout), (0, ""))
            for path in ("/livez", "/readyz", "/vm/vm1/primary"):
                world.a.fetch(path)


class BadInput(unittest.TestCase):
    """One clear line, an exit code of its own kind, nothing changed."""

    @classmethod
    def setUpClass(cls):
        cls.world = World(protection(options()))
        cls.world.__enter__()
        cls.addClassCleanup(cls.world.close)
        cls.world.a.start()
        cls.world.b.start()
        cls.world.define_guest()

    def refused(self, code, words, *arguments):
        done = self.world.a.cli(*arguments)
        said = done.stderr.strip()
        self.assertEqual(done.returncode, code, f"{arguments}: {said or done.stdout}")
        self.assertEqual(len(said.splitlines()), 1, f"{arguments}: not one line: {said}")
        for word in words:
            self.assertIn(word, said)

    def test_peer_that_must_not_stand_in(self):
        """Another arbiter, another CPU: refused before the first page, with the reason; nothing changes."""
        a, b, world = self.world.a, self.world.b, self.world
        wrapper = os.path.join(world.dir, "other-cpu")
        with open(wrapper, "w", encoding="ascii") as file:
            file.write('#!/bin/bash\nexec qemu-system-x86_64 "${@/#qemu64/max}"\n')
        os.chmod(wrapper, 0o755)
        for host in (a, b):
            if host.daemon.poll() is None and host.cli("list").returncode == 0:
                host.cli("stop", "vm1")
        a.must("start", "vm1")
        try:
            for change, words in (({"arbiter": "elsewhere"}, ["arbiter", "elsewhere"]),
                                  ({"qemu": wrapper}, ["cpu feature avx2", "max-x86_64-cpu"])):
                with self.subTest(change=change):
                    b.stop()
                    world.configure(b, **change)
                    b.start()
                    self.refused(6, words, "protect", "vm1", "--peer", "b", "--timeout", "30s")
                    self.assertIn(a.status()["state"], ("running", "unprotected"))
                    self.assertNotIn("vm1", b.must("list"))
        finally:
            b.stop()
            world.configure(b)
            b.start()
            a.must("stop", "vm1")

    def serve(self, config):
        return run(*self.world.a.ns.command(REMUSD, "serve", "--config", config), check=False, timeout=20)

    def test_command_line(self):
        self.refused(2, ["frobnicate"], "frobnicate")
        self.refused(2, ["--frob"], "status", "--frob")
        self.refused(2, [], "protect", "vm1")
        self.refused(4, ["vm9"], "status", "vm9")
        self.refused(4, ["vm9"], "protect", "vm9", "--peer", "b")
        self.refused(4, ["vm9"], "start", "vm9")

    def test_configuration(self):
        path = os.path.join(self.world.dir, "bad.toml")
        for text, words in (('node = "a"\nfrobnicate = 1\n', ["frobnicate", "bad.toml:2"]),
                            ('node = "a"\n[protection]\nepoch_ms = 1\n', ["epoch_ms"]),
                            ('node = "a"\n[protection]\nepoch_ms = "x"\n', ["epoch_ms", "bad.toml:3"]),
                            ('node = \n', ["bad.toml:1"]), ("", ["node"])):
            with self.subTest(text=text):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                done = self.serve(path)
                self.assertNotEqual(done.returncode, 0)
                self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
                for word in words:
                    self.assertIn(word, done.stderr)
        self.assertNotEqual(self.serve("/nonexistent.toml").returncode, 0)

    def test_guest_and_peer(self):
        a = self.world.a
        self.refused(1, ["vm1", "not run"], "protect", "vm1", "--peer", "b")
        a.must("start", "vm1")
        self.refused(2, ["epoch", "2 ms"], "protect", "vm1", "--peer", "b", "--epoch", "1ms")
        self.refused(2, ["epoch", "2 ms"], "protect", "vm1", "--peer", "b", "--epoch", "2000ms")
        self.refused(2, ["nobody"], "protect", "vm1", "--peer", "nobody")
        before = a.status()
        self.assertEqual(before["state"], "running")
        self.world.b.stop()
        self.refused(1, ["b", "10.78.0.2:7270"], "protect", "vm1", "--peer", "b", "--timeout", "5s")
        self.assertIn(a.status()["state"], ("running", "unprotected"))
        self.world.b.start()
        protect(self.world)
        self.refused(1, ["already"], "protect", "vm1", "--peer", "b")
        self.refused(1, ["already"], "start", "vm1")
        self.assertEqual(a.status()["state"], "protected")


def is_qemu(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().startswith("qemu-system")
    except OSError:
        return False


def cpu_ticks(pid):
    """Clock ticks that a process has used; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else int(fields[11]) + int(fields[12])
    except OSError:
        return None


if __name__ == "__main__":
    unittest.main()
