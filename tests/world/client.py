#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The client outside: holds one TCP session and a stream of UDP requests to the service in the guest.

    client.py --guest ADDRESS [--udp-ms 5] [--tcp-ms 10] [--disk-ms 0] [--connect-timeout 60] [--log FILE]

Takes one command a line on stdin and answers each with one JSON object a line on stdout:

    connect        waits for the service, opens the session, starts the traffic
    progress       what was seen so far
    silence SINCE  the longest times without a reply since then
    load COMMAND ARGUMENT      the service's UDP port 7002: see service.cc
    acknowledged FILE          writes down what the disk must have, for disk_check.py
    finish [BEGIN END]         ends the traffic, audits every answer and judges; the times of the kill
"""

import argparse
import json
import random
import select
import socket
import struct
import sys
import time

from asker import Asker
from judge import StreamJudge, verdict

COUNT_PORT, STREAM_PORT, LOAD_PORT, RECORDS_PORT, DATABASE_PORT = range(7000, 7005)
RETRY_EVERY_S = 0.02


class Client:
    def __init__(self, options):
        self.options = options
        self.counting = Asker(options.guest, COUNT_PORT, options.udp_ms)
        self.counter = self.counting.judge
        self.ledgers = {}
        if options.disk_ms:
            self.ledgers = {name: Asker(options.guest, port, options.disk_ms, retry_s=1, kept=True)
                            for name, port in (("records", RECORDS_PORT), ("database", DATABASE_PORT))}
        self.askers = [self.counting, *self.ledgers.values()]
        self.stream = StreamJudge()
        self.random = random.Random(1)
        self.tcp = None
        self.unsent = b""

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

    def turn(self, until, commands):
        """One round: waits for what comes first, at most until `until`. True when a command line waits."""
        readers = self.askers + ([self.tcp] if self.tcp else []) + ([sys.stdin] if commands else [])
        writers = [self.tcp] if self.tcp and self.unsent else []
        ready, writable, _ = select.select(readers, writers, [], max(0.0, until - time.monotonic()))
        for asker in self.askers:
            if asker in ready:
                asker.datagrams()
        if self.tcp and self.tcp in ready:
            self.bytes_arrived()
        if writable:
            self.push()
        return sys.stdin in ready

    def traffic(self):
        """Runs traffic until a command comes."""
        now = time.monotonic()
        next_tcp = next_retry = now
        for asker in self.askers:
            asker.next_at = now
        while True:
            now = time.monotonic()
            for asker in self.askers:
                asker.due(now)
            if now >= next_tcp:
                self.new_message(now)
                next_tcp = max(next_tcp + self.options.tcp_ms / 1000, now)
            if now >= next_retry:
                for asker in self.askers:
                    asker.retry(now)
                next_retry = now + RETRY_EVERY_S
            if self.turn(min(next_tcp, next_retry, *(asker.next_at for asker in self.askers)), commands=True):
                return

    def connect(self):
        begin = time.monotonic()
        deadline = begin + self.options.connect_timeout
        while not all(asker.judge.replies for asker in self.askers):
            if time.monotonic() > deadline:
                return {"error": "the service does not answer over UDP"}
            for asker in self.askers:
                if not asker.judge.replies:
                    asker.new_request(time.monotonic())
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
        """Asks the load port, with retries (not for an end, which must not happen twice: its answer may take
        longer). `asked` is when, on the clock outside: the guest's own stands still in pauses, and a reply is
        held."""
        ends = command in (2, 7, 8)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.connect((self.options.guest, LOAD_PORT))
            asker.settimeout(5 if ends else 0.5)
            for _ in range(1 if ends else 10):
                asked = time.monotonic()
                try:
                    asker.send(struct.pack("<II", command, argument))
                    state = struct.unpack("<5Q", asker.recv(64))
                    return dict(zip(("dirtied", "spins", "uptime_ns", "corrupt", "boot"), state), asked=asked)
                except OSError:
                    continue
        return {"error": "the load port does not answer"}

    def wait(self, until):
        self.turn(until, commands=False)

    def check_ledger(self, asker):
        """The service's own check of what it has on the disk, such as SQLite's: True or False."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
            fresh.connect(asker.socket.getpeername())
            fresh.settimeout(5)
            for _ in range(3):
                try:
                    fresh.send(struct.pack("<I", 0))
                    return struct.unpack("<QQ", fresh.recv(64))[0] == 1
                except OSError:
                    continue
        return False

    def acknowledged(self, path):
        """Writes down what was acknowledged, for disk_check.py: number -> id, of each ledger."""
        known = {name: asker.judge.answered for name, asker in self.ledgers.items()}
        with open(path, "w", encoding="ascii") as file:
            json.dump(known, file)
        return {name: len(answers) for name, answers in known.items()}

    def finish(self, begin, end):
        unaudited = self.counting.audit(self.wait)
        found = verdict(self.counter, self.stream, begin, end)
        found["unaudited"] = unaudited
        found["abandoned"] = self.counting.abandoned
        for name, asker in self.ledgers.items():
            found[name] = asker.findings(asker.audit(self.wait))
            found[name]["in_order"] = self.check_ledger(asker)
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
                "rolled_back": self.counter.rolled_back + self.stream.repeats,
                **{name: len(asker.judge.replies) for name, asker in self.ledgers.items()}}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--guest", required=True)
    parser.add_argument("--udp-ms", type=float, default=5)
    parser.add_argument("--tcp-ms", type=float, default=10)
    parser.add_argument("--disk-ms", type=float, default=0, help="requests to what is on the disk; 0: none")
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
        elif verb == "acknowledged":
            answer = client.acknowledged(arguments[0])
        elif verb == "finish":
            times = [float(word) for word in arguments] or [None, None]
            answer = client.finish(*times)
            running = False
        else:
            answer = {"error": f"unknown command {verb}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
