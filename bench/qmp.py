# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A stock QEMU with the test guest, and its monitor. Every wait has a deadline; what was started is ended."""

import json
import os
import signal
import socket
import subprocess
import threading
import time


class QmpError(Exception):
    """QEMU refused a command, or did not answer in time."""


class Monitor:
    """One QMP connection; events are kept in the order in which they came."""

    def __init__(self, path, timeout=10):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise QmpError(f"no monitor at {path}") from None
                time.sleep(0.02)
        self.data = b""
        self.events = []
        self._line(deadline)  # the greeting
        self.ask("qmp_capabilities")

    def _line(self, deadline):
        while b"\n" not in self.data:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError("QEMU does not answer")
            self.socket.settimeout(left)
            try:
                more = self.socket.recv(65536)
            except socket.timeout:
                raise QmpError("QEMU does not answer") from None
            if not more:
                raise QmpError("QEMU closed its monitor")
            self.data += more
        line, self.data = self.data.split(b"\n", 1)
        return json.loads(line)

    def ask(self, command, timeout=10, **arguments):
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            message = self._line(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, accept, timeout=10):
        """The first event for which accept(event) is true, of those that were not waited past."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            while seen < len(self.events):
                seen += 1
                if accept(self.events[seen - 1]):
                    return self.events[seen - 1]
            message = self._line(deadline)
            if "event" in message:
                self.events.append(message)

    def drain(self):
        """Takes what has come; the events so far, which are then forgotten."""
        self.ask("query-name")
        events, self.events = self.events, []
        return events

    def close(self):
        self.socket.close()


def stamp_ms(event):
    return event["timestamp"]["seconds"] * 1e3 + event["timestamp"]["microseconds"] / 1e3


def pauses_ms(events):
    """Between each STOP and the RESUME that follows it."""
    found, stopped = [], None
    for event in events:
        if event["event"] == "STOP" and stopped is None:
            stopped = stamp_ms(event)
        elif event["event"] == "RESUME" and stopped is not None:
            found.append(stamp_ms(event) - stopped)
            stopped = None
    return found


class Machine:
    """A stock QEMU: machine, memory and guest are those of remusd's pair; the network leads nowhere."""

    def __init__(self, directory, image, name="vm", shared=False, append="", memory_mib=256, extra=()):
        self.base = os.path.join(directory, name)
        self.serial = self.base + ".serial"
        backend, share = ("memfd", "share=on") if shared else ("ram", "share=off")
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
                   "-machine", "type=pc,memory-backend=ram0,suppress-vmdesc=on",
                   "-object", f"memory-backend-{backend},id=ram0,size={memory_mib}M,{share}",
                   "-m", f"{memory_mib}M", "-smp", "1", "-accel", "tcg,thread=multi", "-cpu", "qemu64",
                   "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd.gz",
                   "-append", "console=ttyS0 quiet panic=1 mitigations=off cryptomgr.notests " + append,
                   "-chardev", f"file,id=serial0,append=on,path={self.serial}", "-serial", "chardev:serial0",
                   "-netdev", "hubport,id=net0,hubid=0",
                   "-device", "virtio-net-pci,disable-modern=on,id=nic0,netdev=net0,bus=pci.0,addr=0x3,"
                   "romfile=",
                   "-qmp", f"unix:{self.base}.qmp,server=on,wait=off", *extra]
        with open(self.base + ".log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)
        self.monitor = None
        try:
            self.monitor = Monitor(self.base + ".qmp")
        except BaseException:
            self.close()
            raise

    def wait_ready(self, timeout=60):
        """Until the service in the guest says that it is there."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                with open(self.serial, encoding="utf-8", errors="replace") as serial:
                    if "remusd-guest ready" in serial.read():
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise QmpError(f"the guest did not boot: {self.complaint()}")
            time.sleep(0.02)

    def complaint(self):
        with open(self.base + ".log", encoding="utf-8", errors="replace") as log:
            return log.read()[-300:].strip() or f"exit {self.process.poll()}"

    def close(self):
        if self.monitor is not None:
            self.monitor.close()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Drain:
    """A unix socket that takes all that is sent to it and throws it away, as fast as it comes."""

    def __init__(self, path):
        self.path = path
        self.bytes = 0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(path)
        self.socket.listen(4)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        room = bytearray(1 << 20)
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                while True:
                    try:
                        got = connection.recv_into(room)
                    except OSError:
                        break
                    if not got:
                        break
                    self.bytes += got

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        os.unlink(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
