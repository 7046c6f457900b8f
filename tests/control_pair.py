# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Daemons on loopback for tests: each in a directory, with ports and processes of its own."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("REMUSD_BINARY", str(ROOT / "build/release/remusd"))
PATIENCE_S = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, what, patience_s=PATIENCE_S):
    """Waits for the event itself: returns the first true value of condition()."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not in {patience_s} s: {what}")


class Result:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self):
        return json.loads(self.out)


class Node:
    """One daemon: its configuration, its process, and the command line that talks to it."""

    def __init__(self, directory, name, port, peers, arbiter, extra="", keys=None):
        """`keys`: a directory with the node's keys; none: plain text."""
        self.name, self.port, self.metrics_port = name, port, free_port()
        self.directory = pathlib.Path(directory) / name
        (self.directory / "guests").mkdir(parents=True)
        self.api = str(self.directory / "api.sock")
        self.log = self.directory / "log"
        self.process = None
        self.config = self.directory / "remusd.toml"
        text = f'''node = "{name}"
listen = "127.0.0.1:{port}"
api = "{self.api}"
metrics = "127.0.0.1:{self.metrics_port}"
state_dir = "{self.directory}/state"
runtime_dir = "{self.directory}/run"
guests_dir = "{self.directory}/guests"
[arbiter]
directory = "{arbiter}"
{extra}
'''
        text += (f'[tls]\nca = "{keys}/ca.crt"\ncert = "{keys}/node.crt"\nkey = "{keys}/node.key"\n' if keys
                 else "[tls]\ninsecure = true\n")
        for peer, address in peers.items():
            text += f'[peer.{peer}]\naddress = "{address}"\n'
        self.config.write_text(text)

    def define(self, vm, text):
        (self.directory / "guests" / f"{vm}.toml").write_text(text)

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([BINARY, "serve", "--config", str(self.config)], stderr=log)
        until(lambda: self.process.poll() is not None or self.run("list").code == 0,
              f"node {self.name} serves")
        assert self.process.poll() is None, self.log.read_text()

    def run(self, *arguments, timeout=PATIENCE_S):
        environment = dict(os.environ, REMUSD_API=self.api)
        return Result(subprocess.run([BINARY, *arguments], capture_output=True, text=True, env=environment,
                                     timeout=timeout, check=False))

    def status(self, vm="vm1"):
        answer = self.run("status", vm, "--json")
        return answer.json if answer.code in (0, 3) else None

    def until_state(self, state, vm="vm1"):
        def reached():
            now = self.status(vm)
            return now if now and now["state"] == state else None
        return until(reached, f"{vm} is {state} on {self.name}; log:\n{self.log.read_text()}")

    def http(self, path):
        with socket.create_connection(("127.0.0.1", self.metrics_port), timeout=PATIENCE_S) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while chunk := link.recv(65536):
                data += chunk
        head, body = data.split(b"\r\n\r\n", 1)
        return int(head.split()[1]), body.decode()

    def kill(self, how=signal.SIGKILL):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
        if self.process:
            return self.process.wait(timeout=PATIENCE_S)
        return None


def keys(*arguments):
    return Result(subprocess.run([BINARY, "keys", *arguments], capture_output=True, text=True,
                                 timeout=PATIENCE_S, check=False))


class Pair:
    """Nodes a and b, each other's peers, with one arbiter, and with keys unless `tls` is false."""

    def __init__(self, extra="[protection]\nheartbeat_lost = 25\n",
                 guest="driver = \"sim\"\nmemory_mib = 8\n", tls=True):
        self.temporary = tempfile.TemporaryDirectory(prefix="remusd-pair-")
        root = self.temporary.name
        ports = [free_port(), free_port()]
        self.dead_port = free_port()
        arbiter = f"{root}/arbiter"
        self.authority = f"{root}/authority"
        folders = {name: f"{root}/keys-of-{name}" if tls else None for name in "ab"}
        if tls:
            assert keys("init", "--dir", self.authority).code == 0
            for name in "ab":
                self.issue(name, folders[name])
        self.a = Node(root, "a", ports[0],
                      {"b": f"127.0.0.1:{ports[1]}", "nowhere": f"127.0.0.1:{self.dead_port}"},
                      arbiter, extra, folders["a"])
        self.b = Node(root, "b", ports[1], {"a": f"127.0.0.1:{ports[0]}"}, arbiter, extra, folders["b"])
        self.a.define("vm1", f'name = "vm1"\n{guest}')
        self.b.define("vm1", f'name = "vm1"\n{guest}')
        self.a.start()
        self.b.start()

    def issue(self, name, folder):
        done = keys("issue", name, "--dir", self.authority, "--out", folder)
        assert done.code == 0, done.err
        return folder

    def close(self):
        for node in (self.a, self.b):
            node.kill()
        self.temporary.cleanup()
