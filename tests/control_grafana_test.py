#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""/metrics of a live pair is clean; the series of dashboard and alerts exist and their expressions parse."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

from control_pair import Pair, until

ROOT = pathlib.Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "grafana/dashboards/remusd.json"
ALERTS = ROOT / "grafana/alerts.yml"


def promtool(*arguments, text=None):
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def dashboard_expressions():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            # What Grafana fills in before Prometheus sees it.
            yield target["expr"].replace("$__rate_interval", "1m").replace("$vm", ".*")


def alert_expressions():
    return re.findall(r"^\s*expr: (.*)$", ALERTS.read_text(), re.MULTILINE)


class Observability(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pair = Pair()
        cls.addClassCleanup(cls.pair.close)
        a = cls.pair.a
        for command in (("start", "vm1"), ("protect", "vm1", "--peer", "b")):
            done = a.run(*command)
            assert done.code == 0, done.err
        until(lambda: a.status()["epochs"]["acked"] > 20, "epochs are acknowledged")
        until(lambda: 'remusd_vm_state{state="protected",vm="vm1"} 1' in a.http("/metrics")[1],
              "the state shows in the metrics")
        cls.texts = [node.http("/metrics")[1] for node in (cls.pair.a, cls.pair.b)]

    def test_promtool_finds_nothing_to_complain_about(self):
        for text in self.texts:
            code, output = promtool("check", "metrics", text=text)
            self.assertEqual((code, output), (0, ""))

    def test_the_series_that_operators_expect_are_there(self):
        wanted = """build_info vm_state owner_generation last_commit_timestamp_seconds epochs_total
            epoch_pause_seconds_bucket epoch_phase_seconds_bucket epoch_commit_seconds_bucket
            dirty_pages_bucket checkpoint_raw_bytes_total checkpoint_sent_bytes_total netbuf_held_bytes
            netbuf_hold_seconds_bucket netbuf_released_packets_total heartbeat_rtt_seconds
            arbiter_request_seconds_bucket failovers_total memory_bytes memory_limit_bytes"""
        for name in wanted.split():
            self.assertRegex(self.texts[0], rf"(?m)^remusd_{name}[{{ ]")
        self.assertRegex(self.texts[0], r'(?m)^remusd_epochs_total\{.*outcome="committed".*\} [1-9]')
        self.assertRegex(self.texts[0], r"(?m)^remusd_epoch_pause_seconds_count\{.*\} [1-9]")

    def test_every_series_of_an_expression_exists(self):
        exposed = set(re.findall(r"(?m)^(remusd_\w+)", self.texts[0]))
        for expression in [*dashboard_expressions(), *alert_expressions()]:
            names = set(re.findall(r"remusd_\w+", expression))
            self.assertTrue(names)
            self.assertLessEqual(names, exposed, expression)

    def test_every_expression_parses(self):
        rules = [f"  - record: r:{i}\n    expr: {json.dumps(expression)}\n"
                 for i, expression in enumerate(dashboard_expressions())]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            file.write("groups:\n- name: dashboard\n  rules:\n" + "".join(rules))
            file.flush()
            code, output = promtool("check", "rules", file.name)
            self.assertEqual(code, 0, output)
        code, output = promtool("check", "rules", str(ALERTS))
        self.assertEqual(code, 0, output)

    def test_alerts_tell_severity_summary_and_description(self):
        text = ALERTS.read_text()
        for key in ("severity:", "summary:", "description:"):
            self.assertEqual(text.count("- alert:"), text.count(key))

    def test_the_dashboard_is_what_its_generator_writes(self):
        sys.path.insert(0, str(ROOT / "grafana"))
        import generate
        self.assertEqual(json.loads(DASHBOARD.read_text()), json.loads(json.dumps(generate.DASHBOARD)))

    def test_health_endpoints(self):
        a = self.pair.a
        self.assertEqual(a.http("/livez")[0], 200)
        self.assertEqual(a.http("/readyz")[0], 200)
        self.assertEqual(a.http("/vm/ghost/primary")[0], 404)
        self.assertEqual(a.http("/nothing")[0], 404)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main(verbosity=2)
