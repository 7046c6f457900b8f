# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Requests over UDP to one port of the service, and what came back, for a judge."""

import os
import socket
import struct
import time

from judge import CounterJudge

GIVE_UP_S = 10.0
AUDIT_BATCH = 64


class Asker:
    def __init__(self, guest, port, every_ms, retry_s=0.1, kept=False):
        """A request every `every_ms`, sent again after `retry_s`. `kept`: numbers of earlier runs go on."""
        self.every_s, self.retry_s = every_ms / 1000, retry_s
        self.judge = CounterJudge(kept)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.connect((guest, port))
        self.pending = {}  # request -> (time of the last datagram, time of the first)
        self.next_request = int.from_bytes(os.urandom(4), "little") << 20 | 1
        self.abandoned = 0
        self.auditing = frozenset()
        self.next_at = 0.0

    def fileno(self):
        return self.socket.fileno()

    def _ask(self, request, now):
        self.judge.sent(request, now)
        first = self.pending.get(request, (now, now))[1]
        self.pending[request] = (now, first)
        try:
            self.socket.send(struct.pack("<Q", request))
        except OSError:  # Refused or unreachable while the guest is away: tried again.
            pass

    def new_request(self, now):
        self._ask(self.next_request, now)
        self.next_request += 1

    def due(self, now):
        """Sends what it is time for."""
        if now >= self.next_at:
            self.new_request(now)
            self.next_at = max(self.next_at + self.every_s, now)

    def retry(self, now):
        for request, (last, first) in list(self.pending.items()):
            if now - first > GIVE_UP_S:
                del self.pending[request]
                self.abandoned += 1
            elif now - last > self.retry_s:
                self._ask(request, now)

    def datagrams(self):
        while True:
            try:
                data = self.socket.recv(2048)
            except OSError:
                return
            now = time.monotonic()
            if len(data) == 16 and not self.auditing:
                request, counter = struct.unpack("<QQ", data)
                self.judge.received(request, counter, now)
                self.pending.pop(request, None)
            elif self.auditing:
                for request, counter in struct.iter_unpack("<QQ", data):
                    if counter in self.auditing:
                        self.auditing.discard(counter)
                        self.judge.audit(counter, request)

    def audit(self, turn):
        """Asks for every answer that was given; turn(until) handles what comes. How many stay unaudited."""
        deadline = time.monotonic() + 10
        self.pending.clear()
        quiet_until = time.monotonic() + 0.3  # Late replies to the traffic come first.
        while time.monotonic() < quiet_until:
            turn(quiet_until)
        waiting = self.judge.unaudited()
        while waiting and time.monotonic() < deadline:
            batch = waiting[:AUDIT_BATCH]
            self.auditing = set(batch)
            try:
                self.socket.send(b"".join(struct.pack("<QQ", 0, counter) for counter in batch))
            except OSError:
                pass
            retry_at = time.monotonic() + max(0.2, self.retry_s)
            while self.auditing and time.monotonic() < retry_at:
                turn(retry_at)
            waiting = self.judge.unaudited()
        self.auditing = frozenset()
        return len(waiting)

    def findings(self, unaudited):
        return {"replies": len(self.judge.replies), "unaudited": unaudited, "abandoned": self.abandoned,
                "replies_rolled_back": self.judge.rolled_back,
                "requests_lost_after_ack": len(self.judge.lost), "faults": self.judge.faults}
