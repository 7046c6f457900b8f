# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Judges a failover from the client's side, by the replies alone. Pure: no sockets, no clock.

All times are seconds of CLOCK_MONOTONIC, which every namespace of one machine shares.

What must hold (tests/guest_service/service.cc says what the service does):

* Counter. Every datagram that reaches the service adds 1, so no two replies may carry the same number, and
  since one thread answers over one path, numbers only rise in the order of arrival. A retransmission is
  counted anew by the service: its late and its early reply differ, and both are higher than all before. So
  any reply at or below the highest number seen is a rollback, without exception.
* Memory. The service remembers which request got which number. Every request that was answered must still
  be remembered so at the end: what is not, is lost after it was acknowledged.
* Stream. Reply k carries k and the hash of all bytes both ways before it. Any gap, any byte twice and any
  byte changed gives another hash.
"""

FNV_START = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK = (1 << 64) - 1


def fnv1a(state, data):
    for byte in data:
        state = ((state ^ byte) * FNV_PRIME) & MASK
    return state


class CounterJudge:
    """Takes what was sent and received over UDP, in order. `kept`: the counter did not begin at 0."""

    def __init__(self, kept=False):
        self.kept = kept
        self.first_sent = {}  # id -> time of its first datagram
        self.transmissions = 0
        self.replies = []  # (time, id, counter), in order of arrival
        self.answered = {}  # counter -> id
        self.highest = 0
        self.rolled_back = 0
        self.lost = set()  # counters of answered requests whose effect is gone
        self.audited = set()
        self.faults = []  # text, the first few

    def sent(self, request, now):
        self.first_sent.setdefault(request, now)
        self.transmissions += 1

    def received(self, request, counter, now):
        if request not in self.first_sent:
            self._fault(f"reply to request {request}, which was never sent")
            return
        self.replies.append((now, request, counter))
        if counter <= self.highest:
            self.rolled_back += 1
            self.lost.update(c for c in range(counter, self.highest + 1) if c in self.answered)
            self._fault(f"counter {counter} (request {request}) after {self.highest} was seen")
        elif not self.kept and counter > self.transmissions:
            self._fault(f"counter {counter} after only {self.transmissions} datagrams")
        self.highest = max(self.highest, counter)
        self.answered[counter] = request

    def audit(self, counter, remembered):
        """The service says that `counter` was given to request `remembered` (0: to none)."""
        self.audited.add(counter)
        if self.answered.get(counter) != remembered:
            self.lost.add(counter)
            self._fault(f"counter {counter} answered request {self.answered.get(counter)}, "
                        f"now it is remembered as {remembered}")

    def unaudited(self):
        return [counter for counter in self.answered if counter not in self.audited]

    def first_reply_after(self, kill_end):
        """The first reply to a request whose first datagram was sent after `kill_end`, when nothing of the
        old host was left that could answer it: so it is from the replica. None if there is none."""
        for time, request, _ in self.replies:
            if time > kill_end and self.first_sent[request] > kill_end:
                return time
        return None

    def replies_between(self, begin, end):
        return sum(1 for time, _, _ in self.replies if begin <= time < end)

    def _fault(self, text):
        if len(self.faults) < 8:
            self.faults.append(text)


class StreamJudge:
    """Takes the messages sent and the bytes received over one TCP connection, in order."""

    REPLY_BYTES = 16

    def __init__(self):
        self.waiting = []  # (frame, time sent), not yet answered
        self.running = FNV_START
        self.number = 0
        self.buffer = b""
        self.replies = []  # (time received, time its message was sent)
        self.gaps = self.repeats = self.corrupt = 0
        self.closed_because = None
        self.faults = []

    def sent(self, frame, now):
        self.waiting.append((frame, now))

    def received(self, data, now):
        self.buffer += data
        while len(self.buffer) >= self.REPLY_BYTES and not self.broken():
            self._reply(self.buffer[: self.REPLY_BYTES], now)
            self.buffer = self.buffer[self.REPLY_BYTES:]

    def closed(self, reason):
        self.closed_because = self.closed_because or reason

    def broken(self):
        """After the first fault the two sides' hashes never meet again: nothing more can be judged."""
        return bool(self.gaps or self.repeats or self.corrupt)

    def survived(self, kill_end, enough=10):
        """Alive, in order, and it went on: `enough` messages sent after the kill were answered."""
        after = sum(1 for _, sent in self.replies if sent > kill_end)
        return not self.broken() and self.closed_because is None and after >= enough

    def longest_gap(self, begin):
        """Seconds, between two replies, of which the later came after `begin`."""
        times = [time for time, _ in self.replies]
        return max((b - a for a, b in zip(times, times[1:]) if b > begin), default=0.0)

    def _reply(self, reply, now):
        number = int.from_bytes(reply[:8], "little")
        if number != self.number + 1:
            if number <= self.number:
                self.repeats += 1
            else:
                self.gaps += 1
            self.faults.append(f"message number {number} after {self.number}")
            return
        if not self.waiting:
            self.gaps += 1
            self.faults.append(f"reply {number} to a message that was never sent")
            return
        frame, sent = self.waiting.pop(0)
        self.running = fnv1a(self.running, frame)
        if int.from_bytes(reply[8:], "little") != self.running:
            self.corrupt += 1
            self.faults.append(f"the hash of reply {number} is not that of the bytes both ways before it")
            return
        self.running = fnv1a(self.running, reply)
        self.number = number
        self.replies.append((now, sent))


def verdict(counter, stream, kill_begin, kill_end):
    """The client's findings as plain data. Times of the kill are None when nothing was killed."""
    found = {
        "requests": len(counter.first_sent),
        "datagrams": counter.transmissions,
        "replies": len(counter.replies),
        "audited": len(counter.audited),
        "replies_rolled_back": counter.rolled_back + stream.repeats,
        "requests_lost_after_ack": len(counter.lost),
        "tcp_messages": stream.number,
        "tcp_faults": stream.gaps + stream.repeats + stream.corrupt,
        "tcp_closed": stream.closed_because,
        "faults": counter.faults + stream.faults,
    }
    if kill_begin is not None:
        first = counter.first_reply_after(kill_end)
        found["failover_ms"] = None if first is None else round((first - kill_begin) * 1000, 1)
        found["tcp_survived"] = stream.survived(kill_end)
        found["tcp_gap_ms"] = round(stream.longest_gap(kill_begin) * 1000, 1)
    else:
        found["tcp_survived"] = not stream.broken() and stream.closed_because is None
    return found
