#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Requests from outside to a server in the guest. The last line is JSON. Run in the client's namespace.

    load.py kv|web --guest ADDRESS [--connections N] [--seconds S] [--think-ms T]
    load.py fill --guest ADDRESS                    writes all keys of `kv` once
    load.py set --guest ADDRESS COMMAND ARGUMENT    one command to the service's load port
    load.py disk --guest ADDRESS WHAT MUCH EVERY    work on the guest's disk: the service's UDP port 7005

A closed loop: each connection has one request under way and sends the next when the reply is there, after a
random pause of up to twice --think-ms. kv is GET and SET by turns of chance over 10,000 keys of 256 bytes.
"""

import argparse
import heapq
import json
import random
import select
import socket
import struct
import sys
import time

from figures import quantiles

KEYS, VALUE_BYTES = 10_000, 256
WARM_UP_S, CONNECT_S, STUCK_S = 0.3, 20, 10
LOAD_PORT, DISK_LOAD_PORT, DISK_LOAD_S = 7002, 7005, 100


class Redis:
    port = 6379

    def __init__(self, seed):
        self.random = random.Random(seed)

    def request(self):
        key = f"key:{self.random.randrange(KEYS):06}"
        if self.random.random() < 0.5:
            return f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode()
        return set_command(key, self.random)

    @staticmethod
    def reply_size(data):
        """How long the reply at the start of `data` is; None while it is not complete."""
        end = data.find(b"\r\n")
        if end < 0:
            return None
        if data[:1] == b"$":
            size = int(data[1:end])
            whole = end + 2 + (size + 2 if size >= 0 else 0)
            return whole if len(data) >= whole else None
        if data[:1] != b"+":
            raise ValueError(f"the server says {bytes(data[:80])!r}")
        return end + 2


class Web:
    port = 80
    head = b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n"

    def __init__(self, seed):
        pass

    def request(self):
        return self.head

    @staticmethod
    def reply_size(data):
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = bytes(data[:end]).decode("latin-1").lower().split("\r\n")
        if " 200" not in lines[0]:
            raise ValueError(f"the server says {lines[0]!r}")
        size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        return end + 4 + size if len(data) >= end + 4 + size else None


def set_command(key, chance):
    # Half of a value is text that compresses, half is not, as of records with identifiers in them.
    value = (f"{key} " * VALUE_BYTES)[:VALUE_BYTES // 2] + chance.randbytes(VALUE_BYTES // 4).hex()
    return (f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n").encode()


class Connection:
    def __init__(self, kind, guest, seed):
        self.protocol = kind(seed)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex((guest, kind.port))
        self.data = bytearray()
        self.sent_at = None

    def send(self, now):
        request = self.protocol.request()
        self.sent_at = now
        if self.socket.send(request) != len(request):  # One small request always fits.
            raise OSError("the request does not fit into the socket")

    def reply(self):
        """True when the reply is there."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return False
        if not data:
            raise OSError("the server closed the connection")
        self.data += data
        size = self.protocol.reply_size(self.data)
        if size is None:
            return False
        del self.data[:size]
        return True


def connect(kind, options):
    """Opens all connections at once and waits until they are there; a booting server is tried again."""
    deadline = time.monotonic() + CONNECT_S
    connections = []
    while len(connections) < options.connections:
        fresh = [Connection(kind, options.guest, seed) for seed in
                 range(len(connections), options.connections)]
        waiting = {one.socket.fileno(): one for one in fresh}
        poll = select.poll()
        for number in waiting:
            poll.register(number, select.POLLOUT)
        refused = False
        while waiting:
            events = poll.poll(max(0, (deadline - time.monotonic()) * 1e3))
            if not events:
                raise OSError(f"no connection to {options.guest}:{kind.port} in {CONNECT_S} s")
            for number, _ in events:
                one = waiting.pop(number)
                poll.unregister(number)
                if one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    connections.append(one)
                else:
                    refused = True
                    one.socket.close()
        if refused:
            if time.monotonic() > deadline:
                raise OSError(f"{options.guest}:{kind.port} refuses connections")
            time.sleep(0.1)
    return connections


def run(kind, options):
    connections = connect(kind, options)
    chance = random.Random(1)
    think = 2 * options.think_ms / 1e3
    begin = time.monotonic() + WARM_UP_S
    end = begin + options.seconds
    poll = select.epoll()
    by_number = {one.socket.fileno(): one for one in connections}
    due = []
    now = time.monotonic()
    for number, one in by_number.items():
        poll.register(number, select.EPOLLIN)
        heapq.heappush(due, (now + chance.random() * think, number))
    took, last = [], now
    while now < end:
        now = time.monotonic()
        while due and due[0][0] <= now:
            by_number[heapq.heappop(due)[1]].send(now)
        until = min(end, due[0][0] if due else end)
        for number, _ in poll.poll(max(0.0, until - now)):
            one = by_number[number]
            if not one.reply():
                continue
            now = last = time.monotonic()
            if begin <= now < end:
                took.append((now - one.sent_at) * 1e3)
            if think:
                heapq.heappush(due, (now + chance.random() * think, number))
            else:
                one.send(now)
        if now - last > STUCK_S:
            raise OSError(f"no reply for {STUCK_S} s")
    for one in connections:
        one.socket.close()
    return {"request_ms": quantiles(took), "requests": len(took), "per_s": len(took) / options.seconds,
            "connections": options.connections}


def fill(options):
    """Writes every key, a hundred at a time."""
    options.connections = 1
    one = connect(Redis, options)[0]
    one.socket.settimeout(STUCK_S)
    chance = random.Random(1)
    for first in range(0, KEYS, 100):
        keys = [f"key:{number:06}" for number in range(first, first + 100)]
        one.socket.sendall(b"".join(set_command(key, chance) for key in keys))
        answer = b""
        while len(answer) < len(keys) * len(b"+OK\r\n"):
            answer += one.socket.recv(65536) or b"-closed"
            if b"-" in answer:
                raise OSError(f"the server says {answer[-80:]!r}")
    return {"keys": KEYS}


def set_load(options):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((options.guest, LOAD_PORT))
        asker.settimeout(0.5)
        for _ in range(20):
            try:
                asker.send(struct.pack("<II", *options.words))
                state = struct.unpack("<5Q", asker.recv(64))
                return dict(zip(("dirtied", "spins", "uptime_ns", "corrupt", "boot"), state))
            except OSError:
                continue
    raise OSError("the load port does not answer")


def disk(options):
    """Asked once: what was asked twice would be measured against itself. Times: the guest's own clock stands
    still in pauses, ours does not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect((options.guest, DISK_LOAD_PORT))
        asker.settimeout(DISK_LOAD_S)
        begun = time.monotonic()
        asker.send(struct.pack("<III", *options.words))
        count, p50_ns, mean_ns = struct.unpack("<QQQ", asker.recv(64))
        return {"count": count, "p50_us": p50_ns / 1e3, "mean_us": mean_ns / 1e3,
                "seconds": time.monotonic() - begun}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("kv", "web", "fill", "set", "disk"))
    parser.add_argument("--guest", required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--think-ms", type=float, default=0)
    parser.add_argument("words", type=int, nargs="*")
    options = parser.parse_intermixed_args()
    try:
        answer = {"kv": lambda: run(Redis, options), "web": lambda: run(Web, options),
                  "fill": lambda: fill(options), "set": lambda: set_load(options),
                  "disk": lambda: disk(options)}[options.what]()
    except (OSError, ValueError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
