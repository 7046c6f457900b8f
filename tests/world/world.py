# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Two hosts and a client on one machine: three network namespaces.

    client:  lan0 (bridge, the LAN's switch, 10.77.0.1/24) -- lan-a, lan-b
    a, b:    lan (veth to the switch) and the guests' TAPs on bridge br0;
             repl (veth a-b, 10.78.0.1 and .2) for the checkpoints

Each run has names of its own. What a World started it ends, by process id, whatever happens.
"""

import atexit
import contextlib
import glob
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.environ.get("REMUSD_BUILD", os.path.join(ROOT, "build", "release"))
REMUSD = os.path.join(BUILD, "remusd")
IMAGE = os.path.join(ROOT, "build", "guest-image")
GUEST_IP = "10.77.0.2"
CLIENT_IP = "10.77.0.1"


class WorldError(Exception):
    """Something around the daemons, or a command of theirs that had to work, failed."""


def run(*command, check=True, timeout=60, stdin=None):
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise WorldError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done


def wait_until(what, condition, timeout):
    """Returns the first true value of condition(); asks often, so that waiting costs nearly nothing."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise WorldError(f"waited {timeout} s for {what}")
        time.sleep(0.02)


class Namespace:
    def __init__(self, name):
        self.name = name
        run("ip", "netns", "add", name)
        self.inode = os.stat(f"/run/netns/{name}").st_ino
        run("ip", "netns", "exec", name, "sh", "-c",
            "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$f; done; "
            "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done; "
            "for f in /proc/sys/net/bridge/bridge-nf-call-*tables; do echo 0 >$f; done; true 2>/dev/null",
            check=False)
        self.links("link set lo up")

    def links(self, *lines):
        """Runs `ip` commands inside, in one process."""
        run("ip", "-n", self.name, "-batch", "-", stdin="".join(line + "\n" for line in lines))

    def command(self, *command):
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self):
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.stat(f"/proc/{entry}/ns/net").st_ino == self.inode:
                        found.append(int(entry))
                except OSError:  # Gone, or a zombie.
                    pass
        return found

    def signal(self, number):
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        return pids

    def remove(self):
        deadline = time.monotonic() + 10
        while self.signal(signal.SIGKILL) and time.monotonic() < deadline:
            time.sleep(0.005)
        run("ip", "netns", "del", self.name, check=False)


class Host:
    """One host: a namespace, a configuration, a daemon."""

    def __init__(self, name, namespace, directory):
        self.name, self.ns, self.dir = name, namespace, directory
        self.config = os.path.join(directory, "remusd.toml")
        self.guests = os.path.join(directory, "guests")
        self.api = os.path.join(directory, "run", "api.sock")
        self.log = os.path.join(directory, "remusd.log")
        self.daemon = None
        self.program, self.environment = REMUSD, {}  # What start() runs, and with what besides our own.
        for folder in ("guests", "run", "state"):
            os.makedirs(os.path.join(directory, folder))

    def configure(self, arbiter, peers, listen, protection, qemu=None, keys=None):
        """`arbiter`: the keys of [arbiter], or a directory for the file arbiter. `keys`: the directory with
        the host's keys; none: plain text."""
        if isinstance(arbiter, str):
            arbiter = {"kind": "file", "directory": arbiter}
        lines = [f'node = "{self.name}"', f'listen = "{listen}"', f'api = "{self.api}"',
                 f'state_dir = "{self.dir}/state"', f'runtime_dir = "{self.dir}/run"',
                 f'guests_dir = "{self.guests}"', '[arbiter]']
        lines += [f"{key} = {json.dumps(value)}" for key, value in arbiter.items()]
        for peer, address in peers.items():
            lines += [f"[peer.{peer}]", f'address = "{address}"']
        lines += ["[tls]"] + ([f'{key} = "{keys}/{name}"' for key, name in
                               (("ca", "ca.crt"), ("cert", "node.crt"), ("key", "node.key"))] if keys else
                              ["insecure = true"])
        lines += ["[protection]"] + [f"{key} = {json.dumps(value)}" for key, value in protection.items()]
        if qemu:
            lines += ["[qemu]", f"binary = {json.dumps(qemu)}"]
        with open(self.config, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def start(self, timeout=15):
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(
                self.ns.command(self.program, "serve", "--config", self.config), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, env={**os.environ, **self.environment})

        def answers():
            if self.daemon.poll() is not None:
                raise WorldError(f"the daemon on {self.name} ended with {self.daemon.returncode}:\n"
                                 f"{self.tail()}")
            return os.path.exists(self.api) and self.cli("list").returncode == 0

        wait_until(f"the daemon on {self.name}", answers, timeout)

    def cli(self, *arguments, timeout=60):
        return run(*self.ns.command(self.program, "--api", self.api, *arguments), check=False,
                   timeout=timeout)

    def must(self, *arguments, timeout=60, good=(0,)):
        """A command that has to work: its standard output."""
        done = self.cli(*arguments, timeout=timeout)
        if done.returncode not in good:
            raise WorldError(f"on {self.name}: remusd {' '.join(arguments)}: exit {done.returncode}: "
                             f"{(done.stderr or done.stdout).strip()}\n{self.tail()}")
        return done.stdout

    def ask(self, *arguments, timeout=60, good=(0,)):
        """A command with --json: its last line, as data."""
        output = self.must(*arguments, "--json", timeout=timeout, good=good)
        return json.loads(output.strip().splitlines()[-1])

    def status(self, guest="vm1"):
        return self.ask("status", guest, good=(0, 3))  # 3: it is unprotected.

    def fetch(self, path):
        """A page of the host's HTTP endpoint, asked from the host itself."""
        program = ("import urllib.request, sys; "
                   "sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())")
        return run(*self.ns.command(sys.executable, "-c", program, f"http://127.0.0.1:9470{path}")).stdout

    def wait_state(self, state, timeout=20, guest="vm1"):
        """Waits until the guest is in this state; its status then."""
        last = {}

        def reached():
            done = self.cli("status", guest, "--json")
            last.clear()
            if done.returncode in (0, 3):
                last.update(json.loads(done.stdout))
            return last.get("state") == state

        try:
            wait_until(f"state {state} on {self.name}", reached, timeout)
        except WorldError as error:
            raise WorldError(f"{error}; it is {last.get('state', 'unknown')}: {last.get('reason', '')}\n"
                             f"{self.tail()}") from None
        return dict(last)

    def kill(self, cut_power=False):
        """SIGKILL to everything on the host. Returns the moments before the first signal and after the last
        process was gone: what is asked after the second cannot be answered from here. With cut_power the
        cables go first, so that no peer hears a connection being closed."""
        self.ns.pids()  # Warm: the kill itself is quick.
        begin = time.monotonic()
        if cut_power:
            self.ns.links("link set repl down", "link set lan down")
        while self.ns.signal(signal.SIGKILL):
            time.sleep(0.0005)
        end = time.monotonic()
        self.daemon.wait()
        return begin, end

    def let_processors_sleep(self):
        """What the next daemon would do after one that was killed in a pause: there is none."""
        for record in glob.glob(os.path.join(self.dir, "run", "*.awake")):
            with open(record, encoding="ascii") as file:
                processor, before = (file.read().split() + ["", ""])[:2]
            setting = f"/sys/devices/system/cpu/cpu{processor}/power/pm_qos_resume_latency_us"
            with contextlib.suppress(OSError), open(setting, "r+", encoding="ascii") as file:
                if file.read().strip() == "n/a":
                    file.seek(0)
                    file.write(before)

    def stop(self):
        """Ends the daemon in order; guests go on."""
        self.daemon.terminate()
        self.daemon.wait(timeout=20)

    def tail(self, lines=15):
        try:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                return "".join(f"  {self.name}| {line}" for line in log.readlines()[-lines:])
        except OSError:
            return ""


class Client:
    """client.py in the client's namespace."""

    def __init__(self, namespace, log=None, connect_timeout=60, disk_ms=0):
        command = [sys.executable, "-u", os.path.join(HERE, "client.py"), "--guest", GUEST_IP,
                   "--connect-timeout", str(connect_timeout), "--disk-ms", str(disk_ms)]
        if log:
            command += ["--log", log]
        self.process = subprocess.Popen(namespace.command(*command), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)

    def ask(self, command, timeout=90):
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorldError(f"the client is gone: {error}") from None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise WorldError(f"the client does not answer '{command.split()[0]}'")
        answer = json.loads(line)
        if "error" in answer:
            raise WorldError(f"client: {answer['error']}")
        return answer

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class World:
    """The three namespaces. `with World() as world:` cleans up, also on a signal."""

    tls = True  # The hosts have keys, made by `remusd keys`. False: they speak in plain text.

    def __init__(self, protection=None, keep=False):
        self.keep = keep
        self.prefix = f"remusd{os.getpid()}"
        self.dir = tempfile.mkdtemp(prefix="remusd-")
        self.namespaces, self.clients, self.servers = [], [], []
        self.protection = protection or {}
        self.failed = False

    def __enter__(self):
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda got, _: sys.exit(128 + got))
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and not isinstance(error, SystemExit):
            self.failed = True
            self.save_logs()
        if not self.keep:
            self.close()

    def _build(self):
        def make(name):
            self.namespaces.append(Namespace(f"{self.prefix}-{name}"))
            return self.namespaces[-1]

        self.client_ns, ns_a, ns_b = make("client"), make("a"), make("b")
        bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        self.client_ns.links(
            f"link add lan0 {bridge}", f"addr add {CLIENT_IP}/24 dev lan0", "link set lan0 up",
            *(f"link add lan-{ns.name[-1]} type veth peer name lan netns {ns.name}" for ns in (ns_a, ns_b)),
            *(f"link set lan-{name} master lan0 up" for name in "ab"))
        # Asks for a booting guest's address ten times a second, not once.
        run(*self.client_ns.command("sh", "-c", "echo 100 >/proc/sys/net/ipv4/neigh/lan0/retrans_time_ms"))
        ns_a.links(f"link add repl type veth peer name repl netns {ns_b.name}")
        for number, ns in ((1, ns_a), (2, ns_b)):
            ns.links(f"link add br0 {bridge}", "link set br0 up", "link set lan master br0 up",
                     f"addr add 10.78.0.{number}/24 dev repl", "link set repl up")

        self.hold = False  # the guest's disk is one file
        os.makedirs(os.path.join(self.dir, "arbiter"))
        self.hosts = {name: Host(name, ns, os.path.join(self.dir, name)) for name, ns in
                      (("a", ns_a), ("b", ns_b))}
        self.a, self.b = self.hosts["a"], self.hosts["b"]
        if self.tls:
            authority = os.path.join(self.dir, "authority")
            run(REMUSD, "keys", "init", "--dir", authority)
            for name, host in self.hosts.items():
                run(REMUSD, "keys", "issue", name, "--dir", authority,
                    "--out", os.path.join(host.dir, "keys"))
        self.configure(self.a)
        self.configure(self.b)

    def configure(self, host, arbiter="arbiter", qemu=None):
        """Writes the host's configuration; the daemon reads it when it starts. `arbiter`: the name of a
        directory for the file arbiter, or the keys of [arbiter] (Etcd.arbiter())."""
        addresses = {"a": "10.78.0.1:7270", "b": "10.78.0.2:7270"}
        listen = addresses.pop(host.name)
        if isinstance(arbiter, str):
            arbiter = os.path.join(self.dir, arbiter)
        host.configure(arbiter, addresses, listen, self.protection, qemu,
                       os.path.join(host.dir, "keys") if self.tls else None)

    def define_guest(self, nic="virtio-net-pci", vcpus=1, machine="pc", dirty=2000, cpu="qemu64", name="vm1",
                     pages=4096, ip=GUEST_IP, servers="", disk=False, hold=False, **changes):
        """Writes the guest's definition on host a. The cloud kernel has no e1000 driver; `servers` (kv,web)
        needs the image with servers, `disk` the one with a disk, of which each host gets a copy where
        disk_of() has nothing yet, or with `hold` (True, or a folder) both the same."""
        self.hold = hold
        image = IMAGE if nic.startswith("virtio") else os.path.join(IMAGE, "generic")
        if servers or disk:
            image = os.path.join(IMAGE, "disk" if disk else "servers")
        # Not nokaslr: a kernel that unpacks over its predecessor's code is very slow to reboot under TCG.
        append = ("console=ttyS0 quiet panic=1 mitigations=off cryptomgr.notests "
                  f"remusd.ip={ip}/24 remusd.dirty={dirty} remusd.pages={pages}")
        if servers:
            append += f" remusd.servers={servers}"
        if disk:
            append += " remusd.root=/dev/vda"
        fields = {"name": name, "driver": "qemu", "machine": machine, "accelerator": "tcg", "cpu": cpu,
                  "vcpus": vcpus, "memory_mib": 256, "kernel": f"{image}/vmlinuz",
                  "initrd": f"{image}/initrd.gz", "append": append, "serial_log": f"{self.dir}/serial.log"}
        fields.update(changes)
        self.boot_fields = fields
        lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        lines += ["[[nic]]", f"model = {json.dumps(nic)}", 'bridge = "br0"']
        if disk:
            paths = {host: self.disk_of(host, name) for host in "ab"}
            for copy in set(paths.values()):
                if not os.path.exists(copy):
                    run("cp", "--sparse=always", "--reflink=auto", os.path.join(image, "disk.raw"), copy)
            lines += ["[[disk]]", f"path = {json.dumps(paths['a'])}",
                      f"backup_path = {json.dumps(paths['b'])}",
                      f"model = {json.dumps('virtio-blk-pci' + '-legacy' * nic.endswith('-legacy'))}"]
            if hold:
                lines += ['mode = "hold"']
        path = os.path.join(self.a.guests, f"{name}.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return path

    def disk_of(self, host, guest="vm1"):
        """Where the guest's disk is on host "a" or "b"."""
        folder = self.hold if isinstance(self.hold, str) else self.dir if self.hold else self.hosts[host].dir
        return os.path.join(folder, f"{guest}.disk0.raw")

    def client(self, **options):
        client = Client(self.client_ns, log=os.path.join(self.dir, "client.log"), **options)
        self.clients.append(client)
        return client

    def save_logs(self):
        """Keeps what tells of a failure, where it survives the clean-up."""
        target = os.path.join(ROOT, "build", "world-logs", self.prefix)
        os.makedirs(target, exist_ok=True)
        for host in self.hosts.values() if hasattr(self, "hosts") else ():
            if os.path.exists(host.log):
                shutil.copy(host.log, os.path.join(target, f"{host.name}.log"))
        for server in self.servers:
            for name in server.logs():
                shutil.copy(name, target)
        for name in ("serial.log", "client.log"):
            if os.path.exists(os.path.join(self.dir, name)):
                shutil.copy(os.path.join(self.dir, name), target)
        print(f"logs kept in {os.path.relpath(target, ROOT)}", file=sys.stderr)

    def close(self):
        atexit.unregister(self.close)
        for process in self.clients + self.servers:
            process.end()
        for ns in self.namespaces:
            ns.remove()
        for host in getattr(self, "hosts", {}).values():
            if host.daemon is not None:
                host.daemon.wait()
            host.let_processors_sleep()
        self.namespaces, self.clients, self.servers = [], [], []
        shutil.rmtree(self.dir, ignore_errors=True)
