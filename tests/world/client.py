#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The client outside: holds one TCP session and a stream of UDP requests to the service in the guest.

    client.py --guest ADDRESS [--udp-ms 5] [--tcp-ms 10] [--connect-timeout 60] [--log FILE]

Takes one command a line on stdin and answers each with one JSON object a line on stdout:

    connect        waits for the service, opens the session, starts the traffic
    progress       what was seen so far
    silence SINCE  the longest times without a reply since then
    load COMMAND ARGUMENT      the service's UDP port 7002: see service.cc
    finish [BEGIN END]         ends the traffic, audits every answer and judges; the times of the kill
"""

import argparse
import json
import os
import random
import select
import socket
import struct
import sys
import time

from judge import CounterJudge, StreamJudge, verdict

COUNT_PORT, STREAM_PORT, LOAD_PORT = 7000, 7001, 7002
RETRY_S = 0.1
GIVE_UP_S = 10.0
AUDIT_BATCH = 64


class Client:
    def __init__(self, options):
        self.options = options
        self.counter = CounterJudge()
        self.stream = StreamJudge()
        self.random = random.Random(1)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.connect((options.guest, COUNT_PORT))
        self.tcp = None
        self.pending = {}  # request -> (time of the last datagram, time of the first)
        self.next_request = int.from_bytes(os.urandom(4), "little") << 20 | 1
        self.unsent = b""
        self.abandoned = 0

    # Requests over UDP.

    def ask(self, request, now):
        self.counter.sent(request, now)
        first = self.pending.get(request, (now, now))[1]
        self.pending[request] = (now, first)
        try:
            self.udp.send(struct.pack("<Q", request))
        except OSError:  # Refused or unreachable while the guest is away: tried again.
            pass

    def new_request(self, now):
        self.ask(self.next_request, now)
        self.next_request += 1

    def retry(self, now):
        for request, (last, first) in list(self.pending.items()):
            if now - first > GIVE_UP_S:
                del self.pending[request]
                self.abandoned += 1
            elif now - last > RETRY_S:
                self.ask(request, now)

    def datagrams(self):
        while True:
            try:
                data = self.udp.recv(2048)
            except OSError:
                return
            now = time.monotonic()
            if len(data) == 16 and not self.auditing:
                request, counter = struct.unpack("<QQ", data)
                self.counter.received(request, counter, now)
                self.pending.pop(request, None)
            elif self.auditing:
                for request, counter in struct.iter_unpack("<QQ", data):
                    if counter in self.auditing:
                        self.auditing.discard(counter)
                        self.counter.audit(counter, request)

    # Messages over TCP.

    def new_message(self, now):
        if self.tcp is None or len(self.unsent) > 1 << 16:
            return
        body = self.random.randbytes(self.random.randrange(1, 120))
        frame = struct.pack("<I", len(body)) + body
        self.stream.sent(frame, now)
        self.unsent += frame
        self.push()

    def push(self):
        if not self.unsent or self.tcp is None:
            return
        try:
            self.unsent = self.unsent[self.tcp.send(self.unsent):]
        except BlockingIOError:
            pass
        except OSError as error:
            self.lose(str(error))

    def bytes_arrived(self):
        try:
            data = self.tcp.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(str(error))
            return
        if data:
            self.stream.received(data, time.monotonic())
        else:
            self.lose("closed by the guest")

    def lose(self, reason):
        self.stream.closed(reason)
        self.tcp.close()
        self.tcp = None

    # The loop.

    auditing = frozenset()

    def turn(self, until, commands):
        """One round: waits for what comes first, at most until `until`. True when a command line waits."""
        readers = [self.udp] + ([self.tcp] if self.tcp else []) + ([sys.stdin] if commands else [])
        writers = [self.tcp] if self.tcp and self.unsent else []
        ready, writable, _ = select.select(readers, writers, [], max(0.0, until - time.monotonic()))
        if self.udp in ready:
            self.datagrams()
        if self.tcp and self.tcp in ready:
            self.bytes_arrived()
        if writable:
            self.push()
        return sys.stdin in ready

    def traffic(self):
        """Runs traffic until a command comes."""
        now = time.monotonic()
        next_udp = next_tcp = next_retry = now
        while True:
            now = time.monotonic()
            if now >= next_udp:
                self.new_request(now)
                next_udp = max(next_udp + self.options.udp_ms / 1000, now)
            if now >= next_tcp:
                self.new_message(now)
                next_tcp = max(next_tcp + self.options.tcp_ms / 1000, now)
            if now >= next_retry:
                self.retry(now)
                next_retry = now + RETRY_S / 5
            if self.turn(min(next_udp, next_tcp, next_retry), commands=True):
                return

    def connect(self):
        begin = time.monotonic()
        deadline = begin + self.options.connect_timeout
        while not self.counter.replies:
            if time.monotonic() > deadline:
                return {"error": "the service does not answer over UDP"}
            self.new_request(time.monotonic())
            self.turn(time.monotonic() + 0.05, commands=False)
        while self.tcp is None:  # The guest's services come up one after another.
            try:
                self.tcp = socket.create_connection((self.options.guest, STREAM_PORT), timeout=10)
            except ConnectionRefusedError as error:
                if time.monotonic() > deadline:
                    return {"error": f"cannot open the TCP session: {error}"}
            except OSError as error:
                return {"error": f"cannot open the TCP session: {error}"}
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tcp.setblocking(False)
        return {"connected": True, "seconds": round(time.monotonic() - begin, 2)}

    def load(self, command, argument):
        """Asks the load port, with retries (not for an end, which must not happen twice). `asked` is when,
        on the clock outside: the guest's own stands still in pauses, and a reply is held."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect((self.options.guest, LOAD_PORT))
            asker.settimeout(0.5)
            for _ in range(1 if command in (2, 7, 8) else 10):
                asked = time.monotonic()
                try:
                    asker.send(struct.pack("<II", command, argument))
                    state = struct.unpack("<QQQQ", asker.recv(64))
                    return dict(zip(("dirtied", "spins", "uptime_ns", "corrupt"), state), asked=asked)
                except OSError:
                    continue
        return {"error": "the load port does not answer"}

    def audit(self):
        """Asks for every answer that was given. What is not confirmed stays unaudited."""
        deadline = time.monotonic() + 10
        self.pending.clear()
        quiet_until = time.monotonic() + 0.3  # Late replies to the traffic come first.
        while time.monotonic() < quiet_until:
            self.turn(quiet_until, commands=False)
        waiting = self.counter.unaudited()
        while waiting and time.monotonic() < deadline:
            batch = waiting[:AUDIT_BATCH]
            self.auditing = set(batch)
            try:
                self.udp.send(b"".join(struct.pack("<QQ", 0, counter) for counter in batch))
            except OSError:
                pass
            retry_at = time.monotonic() + 0.2
            while self.auditing and time.monotonic() < retry_at:
                self.turn(retry_at, commands=False)
            waiting = self.counter.unaudited()
        self.auditing = frozenset()
        return len(waiting)

    def finish(self, begin, end):
        unaudited = self.audit()
        found = verdict(self.counter, self.stream, begin, end)
        found["unaudited"] = unaudited
        found["abandoned"] = self.abandoned
        load = self.load(0, 0)
        found["guest_memory_corrupt"] = load.get("corrupt")
        if self.options.log:
            with open(self.options.log, "w", encoding="ascii") as log:
                for at, request, counter in self.counter.replies:
                    log.write(f"udp {at:.6f} sent {self.counter.first_sent[request]:.6f} {counter}\n")
                for number, (at, sent) in enumerate(self.stream.replies, 1):
                    log.write(f"tcp {at:.6f} sent {sent:.6f} {number}\n")
        return found

    def silence(self, since):
        """The longest time without a reply, in ms, since `since` and the reply before it; and how many
        requests had to be sent again in all."""
        def longest(times):
            times = list(times)
            begin = max((at for at in times if at <= since), default=since)
            times = [begin] + [at for at in times if at > since]
            return max((later - at for at, later in zip(times, times[1:])), default=0.0) * 1000

        return {"udp_ms": longest(at for at, _, _ in self.counter.replies),
                "tcp_ms": longest(at for at, _ in self.stream.replies),
                "sent_again": self.counter.transmissions - len(self.counter.first_sent)}

    def progress(self):
        return {"now": time.monotonic(), "replies": len(self.counter.replies),
                "counter": self.counter.highest,
                "last_reply": self.counter.replies[-1][0] if self.counter.replies else None,
                "tcp_messages": self.stream.number, "tcp_closed": self.stream.closed_because,
                "rolled_back": self.counter.rolled_back + self.stream.repeats}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guest", required=True)
    parser.add_argument("--udp-ms", type=float, default=5)
    parser.add_argument("--tcp-ms", type=float, default=10)
    parser.add_argument("--connect-timeout", type=float, default=60)
    parser.add_argument("--log")
    client = Client(parser.parse_args())
    running = False
    while True:
        if running:
            client.traffic()
        words = sys.stdin.readline().split()
        if not words:
            return
        verb, arguments = words[0], words[1:]
        if verb == "connect":
            answer = client.connect()
            running = "error" not in answer
        elif verb == "progress":
            answer = client.progress()
        elif verb == "silence":
            answer = client.silence(float(arguments[0]))
        elif verb in ("pause", "continue"):  # The traffic.
            running = verb == "continue"
            answer = {"running": running}
        elif verb == "load":
            answer = client.load(int(arguments[0]), int(arguments[1]))
        elif verb == "finish":
            times = [float(word) for word in arguments] or [None, None]
            answer = client.finish(*times)
            running = False
        else:
            answer = {"error": f"unknown command {verb}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
