#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The pure parts of the benchmarks: quantiles, scrapes, the shape of the result, what is wanted, charts."""

import os
import sys
import unittest
import xml.etree.ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "bench"))
import engine  # noqa: E402
import figures  # noqa: E402
import load  # noqa: E402
import qmp  # noqa: E402
import svg  # noqa: E402


class Quantiles(unittest.TestCase):
    def test_are_by_nearest_rank_as_the_daemons_are(self):
        values = list(range(1, 101))
        self.assertEqual(figures.quantiles(values), {"p50": 50, "p99": 99, "max": 100})
        self.assertEqual(figures.quantile([3, 1, 2], 0.5), 2)
        self.assertEqual(figures.quantile([7], 0.99), 7)

    def test_of_nothing_are_none(self):
        self.assertEqual(figures.quantiles([]), {"p50": None, "p99": None, "max": None})

    def test_rounds_become_the_median_of_each_field(self):
        rounds = [{"a": 1.0, "b": {"c": 5}}, {"a": 3.0, "b": {"c": None}},
                  {"a": 2.0, "b": {"c": 7}, "d": "x"}]
        self.assertEqual(figures.middles(rounds), {"a": 2.0, "b": {"c": 6.0}, "d": "x"})
        self.assertIsNone(figures.middles([None, None]))

    def test_stretches_before_and_after_become_their_mean(self):
        self.assertEqual(figures.means({"a": 1, "b": {"c": 4}}, {"a": 2, "b": {"c": None}}),
                         {"a": 1.5, "b": {"c": None}})

    def test_ratio_of_what_was_not_measured_is_none(self):
        self.assertIsNone(figures.ratio(1, 0))
        self.assertIsNone(figures.ratio(None, 2))
        self.assertEqual(figures.ratio(1, 2), 0.5)


class Scrapes(unittest.TestCase):
    BEFORE = """
# HELP remusd_epoch_phase_seconds x
remusd_epoch_phase_seconds_count{vm="vm1",phase="stop"} 10
remusd_epoch_phase_seconds_sum{vm="vm1",phase="stop"} 0.01
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="0.001"} 10
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="0.002"} 10
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="+Inf"} 10
"""
    AFTER = """
remusd_epoch_phase_seconds_count{vm="vm1",phase="stop"} 110
remusd_epoch_phase_seconds_sum{vm="vm1",phase="stop"} 0.16
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="0.001"} 10
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="0.002"} 109
remusd_epoch_phase_seconds_bucket{vm="vm1",phase="stop",le="+Inf"} 110
remusd_epoch_phase_seconds_count{vm="vm2",phase="stop"} 7000
remusd_checkpoint_sent_bytes_total{vm="vm1"} 123
"""

    def test_belong_to_one_guest(self):
        found = figures.parse_metrics(self.AFTER)
        self.assertEqual(found["remusd_checkpoint_sent_bytes_total", ()], 123)
        self.assertEqual(found["remusd_epoch_phase_seconds_count", (("phase", "stop"),)], 110)

    def test_phases_tell_of_the_time_between_two_of_them(self):
        before, after = figures.parse_metrics(self.BEFORE), figures.parse_metrics(self.AFTER)
        stop = figures.phases(before, after)["stop"]
        self.assertAlmostEqual(stop["mean"], 1.5)
        self.assertGreater(stop["p50"], 1.0)
        self.assertLess(stop["p50"], 2.0)

    def test_a_quantile_past_the_last_edge_is_not_guessed(self):
        self.assertIsNone(figures.bucket_quantile([(0.001, 1.0), (float("inf"), 100.0)], 0.99))

    def test_a_phase_that_did_not_happen_is_left_out(self):
        before = figures.parse_metrics(self.AFTER)
        self.assertEqual(figures.phases(before, before), {})


class Result(unittest.TestCase):
    def test_has_its_whole_shape_when_nothing_ran(self):
        result = figures.complete({})
        self.assertEqual(set(result["remusd"]), set(figures.WORKLOADS))
        self.assertEqual(set(result["peers"]), set(figures.PEERS))
        for one in result["remusd"].values():
            for field in ("epoch_ms", "progress_ratio", "throughput_ratio", "wire_ratio", "cpu_cores"):
                self.assertIn(field, one)
            for field in ("pause_ms", "request_ms", "unprotected_request_ms", "commit_ms"):
                self.assertLessEqual({"p50", "p99"}, set(one[field]))
        for one in result["peers"].values():
            self.assertEqual((set(one["pause_ms"]), set(one["total_ms"])), ({"p50", "p99"}, {"p50"}))
        self.assertLessEqual({"sim_epochs_per_s", "delta_encode_gb_s", "lz4_gb_s", "memcpy_gb_s",
                              "tls_commit_ratio"}, set(result["engine"]))
        self.assertEqual(set(result["failover"]), {"promote_ms", "failover_ms"})
        self.assertIsNone(result["floor"]["pause_ms"]["p50"])

    def test_keeps_what_was_measured(self):
        result = figures.complete({"remusd": {"kv": {"wire_ratio": 0.1, "pause_ms": {"p50": 1.0}}}})
        self.assertEqual(result["remusd"]["kv"]["wire_ratio"], 0.1)
        self.assertEqual(result["remusd"]["kv"]["pause_ms"], {"p50": 1.0, "p99": None, "max": None})

    def test_what_was_not_measured_neither_holds_nor_fails(self):
        self.assertEqual({holds for _, _, holds in figures.wanted(figures.complete({}))}, {None})

    def test_what_is_wanted_is_judged(self):
        result = figures.complete({
            "floor": {"pause_ms": {"p50": 1.0}},
            "remusd": {"dirty_8k": {"pause_ms": {"p50": 1.2, "p99": 2.6}, "progress_ratio": 0.95},
                       "kv_latency_target": {"request_ms": {"p50": 4.1},
                                             "unprotected_request_ms": {"p50": 1.0}},
                       "dirty_8k_2ms": {"epochs_per_s": 399}}})
        judged = {text.split(":")[0]: holds for text, _, holds in figures.wanted(result)}
        self.assertIs(judged["pause p50 at 8k pages/s, of the floor's p50"], True)
        self.assertIs(judged["pause p99 at 8k pages/s, of the floor's p50"], False)
        self.assertIs(judged["guest progress at 25 ms and 8k pages/s"], True)
        self.assertIs(judged["kv median request with --latency-target, above unprotected, ms"], False)
        self.assertIs(judged["acknowledged epochs a second at --epoch 2ms"], False)
        self.assertIsNone(judged["kv throughput, of unprotected"])

    def test_report_tells_what_ran_and_leaves_out_what_did_not(self):
        text = figures.report(figures.complete({"remusd": {"idle": {"pause_ms": {"p50": 1.25}}}}))
        self.assertIn("idle", text)
        self.assertIn("1.25", text)
        self.assertNotIn("incompressible  ", text)
        self.assertIn("not measured", text)

    def test_numbers_are_finite_and_short(self):
        self.assertEqual(figures.rounded({"a": [1.23456789, float("nan"), 7]}), {"a": [1.2346, None, 7]})


class Charts(unittest.TestCase):
    def test_are_well_formed_and_show_every_value(self):
        text = svg.bar_chart("Pause <of> it", "ms", ("p50", "p99"),
                             [("a & b", [1.5, None]), ("c", [0.2, 3.0])], line=("floor", 0.9))
        root = xml.etree.ElementTree.fromstring(text)
        words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
        for word in ("Pause <of> it", "a & b", "1.5", "0.2", "3", "not measured", "floor 0.9", "ms"):
            self.assertIn(word, words)

    def test_bars_are_as_long_as_their_values(self):
        scale = svg.Scale([4.0], logarithmic=False)
        self.assertEqual(scale.ticks[-1], 5)
        self.assertAlmostEqual(scale.x(2.5) - svg.LEFT, scale.span / 2)
        scale = svg.Scale([1, 100], logarithmic=True)
        self.assertAlmostEqual(scale.x(10) - svg.LEFT, scale.span / 2)

    def test_there_is_one_for_each_figure_even_when_nothing_ran(self):
        made = svg.charts(figures.complete({}))
        self.assertLessEqual({"pause", "phases", "commit", "progress", "request", "throughput", "wire", "cpu",
                              "peers"}, set(made))
        for text in made.values():
            xml.etree.ElementTree.fromstring(text)


class Protocols(unittest.TestCase):
    def test_redis_replies_are_measured_whole(self):
        size = load.Redis.reply_size
        self.assertEqual(size(b"+OK\r\n$3\r\n"), 5)
        self.assertEqual(size(b"$3\r\nabc\r\n"), 9)
        self.assertEqual(size(b"$-1\r\n"), 5)
        self.assertIsNone(size(b"$3\r\nabc\r"))
        self.assertIsNone(size(b"$3"))
        self.assertRaises(ValueError, size, b"-ERR no\r\n")

    def test_redis_requests_are_well_formed(self):
        redis = load.Redis(1)
        for _ in range(50):
            request = redis.request()
            self.assertIn(request[:1], b"*")
            parts = request.split(b"\r\n")
            for head, body in zip(parts[1:-1:2], parts[2:-1:2]):
                self.assertEqual(int(head[1:]), len(body))

    def test_web_replies_are_measured_whole(self):
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nServer: x\r\n\r\nbody"
        self.assertEqual(load.Web.reply_size(reply + b"HTTP"), len(reply))
        self.assertIsNone(load.Web.reply_size(reply[:-1]))
        refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        self.assertRaises(ValueError, load.Web.reply_size, refusal)

    def test_a_pause_is_from_a_stop_to_the_next_resume(self):
        def event(name, seconds, microseconds):
            return {"event": name, "timestamp": {"seconds": seconds, "microseconds": microseconds}}

        events = [event("RESUME", 1, 0), event("STOP", 2, 999_000), event("MIGRATION", 3, 0),
                  event("RESUME", 3, 1_500), event("STOP", 4, 0)]
        found = qmp.pauses_ms(events)
        self.assertEqual(len(found), 1)
        self.assertAlmostEqual(found[0], 2.5)

    def test_benchmarks_are_found_by_name(self):
        text = """{"benchmarks": [
          {"name": "lz4_pages/1", "run_type": "iteration", "bytes_per_second": 1e9},
          {"name": "lz4_pages/2", "run_type": "iteration", "bytes_per_second": 3e9},
          {"name": "delta_encode/1", "run_type": "iteration", "bytes_per_second": 5e9},
          {"name": "frame_append/40", "run_type": "iteration"}]}"""
        found, each = engine.from_google_benchmark(text)
        self.assertEqual(found, {"lz4_gb_s": 2.0, "delta_encode_gb_s": 5.0})
        self.assertEqual(len(each), 3)

    def test_scans_are_found_by_what_is_touched(self):
        text = """{"benchmarks": [
          {"name": "scan/memory_gib:4/touched_gib:1/dirty:0/manual_time", "s_per_gib": 1e-4},
          {"name": "scan/memory_gib:4/touched_gib:1/dirty:200/manual_time", "s_per_gib": 2e-4},
          {"name": "copy/dirty:200", "bytes_per_second": 1e9}]}"""
        self.assertEqual(engine.scan_ms_per_gib(text), {"4/1": 0.2})


if __name__ == "__main__":
    unittest.main()
