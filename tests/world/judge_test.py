# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The client's judge must see each fault that is planted, and none where there is none."""

import unittest

from disk_judge import RECORD_BYTES, ids_in, judge_records, judge_rows, make_record
from judge import CounterJudge, StreamJudge, fnv1a, FNV_START, verdict


class Service:
    """The guest's service as the judge must picture it; state can be saved and rolled back."""

    def __init__(self):
        self.counter = 0
        self.ids = {}
        self.number = 0
        self.running = FNV_START

    def count(self, request):
        self.counter += 1
        self.ids[self.counter] = request
        return self.counter

    def message(self, frame):
        self.running = fnv1a(self.running, frame)
        self.number += 1
        reply = self.number.to_bytes(8, "little") + self.running.to_bytes(8, "little")
        self.running = fnv1a(self.running, reply)
        return reply

    def save(self):
        return (self.counter, dict(self.ids), self.number, self.running)

    def restore(self, state):
        self.counter, self.ids, self.number, self.running = state[0], dict(state[1]), state[2], state[3]


def frame(text):
    return len(text).to_bytes(4, "little") + text


class Hash(unittest.TestCase):
    def test_is_fnv1a_64(self):  # Vectors from the FNV page of its authors.
        self.assertEqual(fnv1a(FNV_START, b""), 0xCBF29CE484222325)
        self.assertEqual(fnv1a(FNV_START, b"a"), 0xAF63DC4C8601EC8C)
        self.assertEqual(fnv1a(FNV_START, b"foobar"), 0x85944171F73967E8)


class Counter(unittest.TestCase):
    def setUp(self):
        self.service = Service()
        self.judge = CounterJudge()
        self.now = 0.0

    def ask(self, request, answered=True):
        self.now += 0.005
        self.judge.sent(request, self.now)
        counter = self.service.count(request)
        if answered:
            self.judge.received(request, counter, self.now + 0.001)
        return counter

    def audit(self):
        for counter in self.judge.unaudited():
            self.judge.audit(counter, self.service.ids.get(counter, 0))

    def clean(self):
        return self.judge.rolled_back == 0 and not self.judge.lost and not self.judge.faults

    def test_plain_traffic_is_clean(self):
        for request in range(1, 100):
            self.ask(request)
        self.audit()
        self.assertTrue(self.clean())
        self.assertEqual(len(self.judge.audited), 99)

    def test_unanswered_requests_may_be_forgotten(self):
        self.ask(1)
        state = self.service.save()
        self.ask(2, answered=False)
        self.ask(3, answered=False)
        self.service.restore(state)
        self.ask(2)
        self.ask(4)
        self.audit()
        self.assertTrue(self.clean())

    def test_retransmission_answered_twice_is_clean(self):
        self.judge.sent(1, 0.0)
        self.judge.sent(1, 0.1)
        self.judge.received(1, self.service.count(1), 0.2)
        self.judge.received(1, self.service.count(1), 0.3)
        self.audit()
        self.assertTrue(self.clean())

    def test_rollback_of_answered_requests_is_seen(self):
        self.ask(1)
        state = self.service.save()
        self.ask(2)
        self.ask(3)
        self.service.restore(state)
        self.ask(4)
        self.assertEqual(self.judge.rolled_back, 1)
        self.assertEqual(self.judge.lost, {2, 3})

    def test_same_number_again_is_a_rollback(self):
        self.ask(1)
        self.judge.sent(2, 1.0)
        self.judge.received(2, 1, 1.1)
        self.assertEqual(self.judge.rolled_back, 1)

    def test_the_same_reply_twice_is_a_rollback(self):
        counter = self.ask(1)
        self.judge.received(1, counter, 1.0)
        self.assertEqual(self.judge.rolled_back, 1)

    def test_rollback_overtaken_by_unheard_requests_is_seen_by_the_audit(self):
        """Two answered requests are forgotten, and others, whose replies were lost, took their numbers: the
        counter alone looks right."""
        self.ask(1)
        state = self.service.save()
        self.ask(2)
        self.ask(3)
        self.service.restore(state)
        self.ask(4, answered=False)
        self.ask(5, answered=False)
        self.ask(6)
        self.assertEqual(self.judge.rolled_back, 0)
        self.audit()
        self.assertEqual(self.judge.lost, {2, 3})

    def test_number_too_high_is_a_fault(self):
        self.judge.sent(1, 0.0)
        self.judge.received(1, 5, 0.1)
        self.assertTrue(self.judge.faults)

    def test_reply_to_nothing_is_a_fault(self):
        self.judge.received(77, 1, 0.1)
        self.assertTrue(self.judge.faults)

    def test_first_reply_is_only_that_to_a_request_sent_after_the_kill(self):
        self.judge.sent(1, 1.000)
        self.judge.sent(2, 1.010)
        self.judge.received(1, 1, 1.020)  # killed at 1.015..1.016: still from the old host
        self.judge.sent(2, 1.110)  # retransmitted after the kill: its reply proves nothing
        self.judge.sent(3, 1.120)
        self.judge.received(2, 2, 1.200)
        self.assertIsNone(self.judge.first_reply_after(1.016))
        self.judge.received(3, 3, 1.205)
        self.assertEqual(self.judge.first_reply_after(1.016), 1.205)


class Stream(unittest.TestCase):
    def setUp(self):
        self.service = Service()
        self.judge = StreamJudge()
        self.now = 0.0

    def say(self, text):
        self.now += 0.01
        self.judge.sent(frame(text), self.now)
        return self.service.message(frame(text))

    def hear(self, reply):
        self.judge.received(reply, self.now + 0.001)

    def test_plain_stream_survives(self):
        for i in range(30):
            self.hear(self.say(b"m%d" % i))
        self.assertFalse(self.judge.broken())
        self.assertTrue(self.judge.survived(0.1))
        self.assertEqual(self.judge.number, 30)

    def test_replies_may_be_cut_and_joined_anywhere(self):
        replies = b"".join(self.say(b"m%d" % i) for i in range(5))
        for at in range(0, len(replies), 7):
            self.hear(replies[at:at + 7])
        self.assertFalse(self.judge.broken())
        self.assertEqual(self.judge.number, 5)

    def test_lost_message_is_seen(self):
        self.hear(self.say(b"one"))
        self.judge.sent(frame(b"lost on the way"), 0.5)
        self.hear(self.say(b"two"))
        self.assertTrue(self.judge.broken())

    def test_message_handled_twice_is_seen(self):
        self.hear(self.say(b"one"))
        self.service.message(frame(b"one"))
        self.hear(self.say(b"two"))
        self.assertTrue(self.judge.broken())

    def test_reply_twice_is_seen(self):
        reply = self.say(b"one")
        self.hear(reply)
        self.hear(reply)
        self.assertEqual(self.judge.repeats, 1)

    def test_missing_reply_is_a_gap(self):
        self.say(b"one")
        self.hear(self.say(b"two"))
        self.assertEqual(self.judge.gaps, 1)

    def test_one_changed_bit_is_seen(self):
        reply = bytearray(self.say(b"one"))
        reply[9] ^= 1
        self.hear(bytes(reply))
        self.assertEqual(self.judge.corrupt, 1)

    def test_rolled_back_service_is_seen(self):
        self.hear(self.say(b"one"))
        state = self.service.save()
        self.hear(self.say(b"two"))
        self.service.restore(state)
        self.hear(self.say(b"three"))
        self.assertEqual(self.judge.repeats, 1)

    def test_closed_stream_has_not_survived(self):
        for i in range(30):
            self.hear(self.say(b"m%d" % i))
        self.judge.closed("reset")
        self.assertFalse(self.judge.survived(0.1))

    def test_silent_stream_has_not_survived(self):
        for i in range(30):
            self.hear(self.say(b"m%d" % i))
        self.assertFalse(self.judge.survived(self.now))

    def test_longest_gap_counts_from_the_last_reply_before_the_kill(self):
        for now in (1.0, 1.01, 1.31, 1.32):
            self.judge.received(self.say(b"x"), now)
        self.assertAlmostEqual(self.judge.longest_gap(1.1), 0.30)


class Disk(unittest.TestCase):
    IDS = [70, 71, 72, 73, 74]

    def setUp(self):
        self.data = b"".join(make_record(number, ident) for number, ident in enumerate(self.IDS, 1))
        self.acknowledged = dict(enumerate(self.IDS, 1))

    def judge(self, data):
        found = judge_records(bytes(data), self.acknowledged)
        return found["entries"], found["lost"], found["torn_bytes"]

    def test_all_there_is_clean(self):
        self.assertEqual(self.judge(self.data), (5, 0, 0))
        self.assertEqual(judge_records(self.data, self.acknowledged)["faults"], [])

    def test_what_nobody_was_told_of_may_be_there_whole_or_torn(self):
        del self.acknowledged[5]
        self.assertEqual(self.judge(self.data), (5, 0, 0))
        self.assertEqual(self.judge(self.data[:-1]), (4, 0, RECORD_BYTES - 1))
        self.assertEqual(self.judge(self.data[:-RECORD_BYTES]), (4, 0, 0))

    def test_a_record_that_is_missing_or_torn_is_lost(self):
        self.assertEqual(self.judge(self.data[:-1]), (4, 1, RECORD_BYTES - 1))
        self.assertEqual(self.judge(b""), (0, 5, 0))
        for at in (0, 8, 100, RECORD_BYTES - 1):
            data = bytearray(self.data)
            data[2 * RECORD_BYTES + at] ^= 1
            self.assertEqual(self.judge(data), (2, 3, 3 * RECORD_BYTES), at)

    def test_a_block_that_was_never_written_is_seen(self):
        data = bytearray(self.data)
        data[512:1024] = bytes(512)
        self.assertEqual(self.judge(data)[1], 3)

    def test_records_in_another_order_are_lost(self):
        swapped = (self.data[:RECORD_BYTES] + self.data[2 * RECORD_BYTES:3 * RECORD_BYTES]
                   + self.data[RECORD_BYTES:2 * RECORD_BYTES] + self.data[3 * RECORD_BYTES:])
        self.assertEqual(ids_in(swapped), [70])

    def test_another_id_under_an_acknowledged_number_is_lost(self):
        self.acknowledged[3] = 99
        found = judge_records(self.data, self.acknowledged)
        self.assertEqual(found["lost"], 1)
        self.assertEqual(found["faults"], ["3: acknowledged 99, on the disk 72"])

    def test_rows(self):
        rows = list(enumerate(self.IDS, 1))
        self.assertEqual(judge_rows(rows, self.acknowledged)["lost"], 0)
        self.assertEqual(judge_rows(rows[:-1], self.acknowledged)["lost"], 1)
        del self.acknowledged[2]
        self.assertEqual(judge_rows(rows[:1] + rows[2:], self.acknowledged)["faults"],
                         ["the rows' numbers have gaps"])

    def test_a_counter_that_is_kept_need_not_begin_at_one(self):
        for kept, faults in ((True, 0), (False, 1)):
            judge = CounterJudge(kept)
            judge.sent(1, 0.0)
            judge.received(1, 40, 0.1)
            self.assertEqual(len(judge.faults), faults)


class Verdict(unittest.TestCase):
    def test_clean_failover(self):
        service, counter, stream = Service(), CounterJudge(), StreamJudge()
        for i in range(100):
            now = i * 0.01
            counter.sent(i + 1, now)
            stream.sent(frame(b"x"), now)
            if not 0.5 <= now < 0.65:  # dead
                counter.received(i + 1, service.count(i + 1), now + 0.002)
            stream.received(service.message(frame(b"x")), now + 0.002 if now < 0.5 else now + 0.2)
        found = verdict(counter, stream, 0.5, 0.501)
        self.assertTrue(found["tcp_survived"])
        self.assertAlmostEqual(found["failover_ms"], 152.0, delta=1)
        self.assertEqual(found["replies_rolled_back"], 0)
        self.assertEqual(found["requests_lost_after_ack"], 0)

    def test_no_reply_after_the_kill_is_no_failover(self):
        counter, stream = CounterJudge(), StreamJudge()
        counter.sent(1, 0.0)
        counter.received(1, 1, 0.1)
        found = verdict(counter, stream, 0.5, 0.501)
        self.assertIsNone(found["failover_ms"])
        self.assertFalse(found["tcp_survived"])


if __name__ == "__main__":
    unittest.main()
