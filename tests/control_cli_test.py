#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The command line and the daemon as an operator meets them: exit codes, and two daemons on loopback."""
import json
import pathlib
import signal
import subprocess
import tempfile
import unittest

from control_pair import BINARY, Pair, Result, until

DONE, FAILED, USAGE, UNPROTECTED, NO_SUCH_GUEST, TIMED_OUT, UNSAFE = range(7)


def run(*arguments):
    return Result(subprocess.run([BINARY, "--api", "/nonexistent/api.sock", *arguments], capture_output=True,
                                 text=True, timeout=60, check=False))


class CommandLine(unittest.TestCase):
    def refused(self, result, code, *words):
        self.assertEqual(result.code, code, result.err)
        self.assertEqual(result.out, "")
        self.assertEqual(result.err.count("\n"), 1, result.err)
        for word in words:
            self.assertIn(word, result.err)

    def test_bad_usage_is_one_line_and_exit_2(self):
        self.refused(run(), USAGE, "a verb is needed")
        self.refused(run("frobnicate"), USAGE, "frobnicate")
        self.refused(run("--frobnicate"), USAGE, "--frobnicate")
        self.refused(run("list", "--frobnicate"), USAGE, "--frobnicate")
        self.refused(run("protect", "vm1"), USAGE, "--peer")
        self.refused(run("status", "No Such Name"), USAGE, "guest name")
        self.refused(run("wait", "vm1", "--state", "happy"), USAGE, "happy")
        self.refused(run("bench", "floor", "vm1", "--count", "0"), USAGE, "--count")
        self.refused(run("start", "vm1", "--definition", "/nonexistent.toml"), USAGE, "/nonexistent.toml")

    def test_an_epoch_out_of_range_is_usage(self):
        for epoch in ("1ms", "2s", "25", "-25ms", "soon"):
            self.refused(run("protect", "vm1", "--peer", "b", f"--epoch={epoch}"), USAGE, "--epoch", epoch)

    def test_a_pace_out_of_range_is_usage(self):
        for flag, values in {"--latency-target": ("2s", "3"), "--epoch-min": ("100us", "2s", "2"),
                             "--max-slowdown": ("10", "-1%", "95%", "%", "nan%")}.items():
            for value in values:
                self.refused(run("protect", "vm1", "--peer", "b", f"{flag}={value}"), USAGE, flag)

    def test_no_daemon_is_told(self):
        self.refused(run("list"), FAILED, "/nonexistent/api.sock", "remusd serve")

    def test_every_verb_has_help_with_an_example(self):
        for verb in ("serve", "start", "stop", "protect", "unprotect", "failover", "list", "status", "wait",
                     "bench", "bench floor", "keys", "keys init", "keys issue", "keys show"):
            answer = run(*verb.split(), "--help")
            self.assertEqual(answer.code, DONE)
            self.assertIn("Example: remusd " + verb, answer.out)
        for verb in ("start", "stop", "protect", "unprotect", "failover"):
            self.assertIn("--dry-run", run(verb, "--help").out)

    def test_a_bad_configuration_is_told_with_file_and_line(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "remusd.toml"
            path.write_text('node = "a"\n[protection]\nepoch = 25\n')
            self.refused(run("serve", "--config", str(path)), USAGE,
                         f"{path}:3: unknown key 'protection.epoch'")
            path.write_text('node = "a"\n')
            self.assertEqual(run("serve", "--config", str(path), "--dry-run").code, DONE)
            self.refused(run("serve", "--config", str(path), "--log-level", "loud"), USAGE, "loud")


class TwoDaemons(unittest.TestCase):
    def setUp(self):
        # What happens by itself is control_roles_test.py's: here only commands change something.
        self.pair = Pair("[protection]\nheartbeat_lost = 25\nreprotect = false\n")
        self.addCleanup(self.pair.close)
        self.a, self.b = self.pair.a, self.pair.b

    def refused(self, result, code, *words):
        self.assertEqual(result.code, code, result.err)
        self.assertEqual(result.err.count("\n"), 1, result.err)
        for word in words:
            self.assertIn(word, result.err)

    def done(self, result):
        self.assertEqual(result.code, DONE, result.err + self.a.log.read_text() + self.b.log.read_text())
        return result

    def protect(self):
        self.done(self.a.run("start", "vm1"))
        return self.done(self.a.run("protect", "vm1", "--peer", "b"))

    def test_bad_commands_have_their_own_exit_and_change_nothing(self):
        a = self.a
        self.refused(a.run("status", "ghost"), NO_SUCH_GUEST, "ghost")
        self.refused(a.run("start", "ghost"), NO_SUCH_GUEST, "ghost")
        self.refused(a.run("protect", "ghost", "--peer", "b"), NO_SUCH_GUEST, "ghost")
        self.refused(a.run("protect", "vm1", "--peer", "b"), FAILED, "start it first")
        self.refused(a.run("stop", "vm1"), FAILED, "does not run here")
        self.assertEqual(a.status()["state"], "stopped")
        self.done(a.run("start", "vm1", "--dry-run"))
        self.assertEqual(a.run("list", "--json").json["guests"], [])
        self.done(a.run("start", "vm1"))
        before = a.status()
        self.assertEqual((before["state"], before["role"]), ("running", "primary"))
        self.assertEqual(before["schema_version"], 1)
        self.refused(a.run("start", "vm1"), FAILED, "already runs")
        self.refused(a.run("protect", "vm1", "--peer", "zebra"), USAGE, "zebra", "b")
        self.refused(a.run("protect", "vm1", "--peer", "nowhere"), FAILED, "vm1")
        self.refused(a.run("unprotect", "vm1"), UNPROTECTED, "not protected")
        self.refused(a.run("failover", "vm1"), UNPROTECTED, "unprotected")
        self.refused(a.run("wait", "vm1", "--state", "protected", "--timeout", "100ms"), TIMED_OUT,
                     "running")
        self.refused(self.b.run("start", "vm1"), UNSAFE, "'a'", "generation")
        after = a.status()
        self.assertEqual(after["state"], "running")
        self.assertEqual(after["role"], "primary")
        self.assertEqual(self.b.run("list", "--json").json["guests"], [])

    def test_protect_unprotect_and_again(self):
        shown = self.protect().out
        self.assertIn("vm1 is protected by node b", shown)
        on_a = self.a.status()
        self.assertEqual(on_a["state"], "protected")
        self.assertGreaterEqual(on_a["epochs"]["acked"], 1)
        self.assertLessEqual(on_a["epochs"]["released"], on_a["epochs"]["acked"])
        self.assertEqual(self.b.until_state("standby")["role"], "backup")
        self.refused(self.a.run("protect", "vm1", "--peer", "b"), FAILED, "already protected")
        self.refused(self.b.run("unprotect", "vm1"), UNSAFE, "'a'")
        self.refused(self.b.run("start", "vm1"), UNSAFE, "replica")
        self.refused(self.a.run("bench", "floor", "vm1"), FAILED, "protected")
        acked = on_a["epochs"]["acked"]
        until(lambda: self.a.status()["epochs"]["acked"] > acked + 10, "epochs go on")
        self.assertGreater(self.a.status()["pause_ms"]["p50"], 0)
        self.assertEqual(self.a.http("/vm/vm1/primary")[0], 200)
        self.assertEqual(self.b.http("/vm/vm1/primary")[0], 503)
        self.done(self.a.run("unprotect", "vm1"))
        self.assertEqual(self.a.run("status", "vm1").code, UNPROTECTED)
        self.refused(self.a.run("wait", "vm1", "--state", "protected", "--timeout", "5s"), UNPROTECTED)
        until(lambda: self.b.run("list", "--json").json["guests"] == [], "the replica is dropped")
        self.done(self.a.run("protect", "vm1", "--peer", "b", "--epoch", "10ms", "--latency-target", "6ms",
                             "--epoch-min", "1500us", "--max-slowdown", "50%", "--json"))
        paced = self.a.status("vm1")
        keys = ("epoch_ms", "latency_target_ms", "epoch_min_ms", "max_slowdown")
        self.assertEqual([paced[key] for key in keys], [10, 6, 1.5, 0.5])
        self.assertEqual(set(paced["epochs_by_reason"]),
                         {"interval", "output", "late", "slowdown", "staging"})
        self.assertEqual(self.a.status()["epoch_ms"], 10)
        self.done(self.a.run("stop", "vm1"))
        self.assertEqual(self.a.status()["state"], "stopped")

    def test_the_backup_takes_over_when_the_primary_is_killed(self):
        self.protect()
        self.b.until_state("standby")
        self.a.kill()
        on_b = self.b.until_state("unprotected")
        self.assertEqual(on_b["role"], "primary")
        self.assertGreater(on_b["promote_ms"], 0)
        self.assertEqual(self.b.run("status", "vm1").code, UNPROTECTED)
        self.refused(self.b.run("failover", "vm1"), UNPROTECTED)
        self.assertIn('remusd_failovers_total{reason="primary_lost",vm="vm1"} 1', self.b.http("/metrics")[1])
        # The old primary comes back: it must not run the guest, but may protect it.
        self.a.start()
        self.refused(self.a.run("start", "vm1"), UNSAFE, "'b'")
        self.done(self.b.run("protect", "vm1", "--peer", "a"))
        self.assertEqual(self.a.until_state("standby")["role"], "backup")

    def test_failover_by_order_from_the_primary(self):
        self.protect()
        self.b.until_state("standby")
        self.done(self.a.run("failover", "vm1", "--dry-run"))
        self.assertEqual(self.a.status()["state"], "protected")
        self.done(self.a.run("failover", "vm1"))
        self.assertEqual(self.a.status()["state"], "fenced")
        self.assertEqual(self.b.until_state("unprotected")["role"], "primary")
        self.refused(self.a.run("failover", "vm1"), FAILED, "fenced")
        self.refused(self.b.run("failover", "vm1"), UNPROTECTED)

    def test_failover_by_order_from_the_backup(self):
        self.protect()
        self.b.until_state("standby")
        self.done(self.b.run("failover", "vm1"))
        self.assertEqual(self.b.until_state("unprotected")["role"], "primary")
        self.assertEqual(self.a.until_state("fenced")["pid"], 0)
        self.assertEqual(self.a.http("/vm/vm1/primary")[0], 503)

    def test_the_guest_goes_on_when_the_backup_is_killed(self):
        self.protect()
        self.b.kill()
        on_a = self.a.until_state("unprotected")
        self.assertEqual(on_a["role"], "primary")
        self.assertNotEqual(on_a["reason"], "")
        self.refused(self.a.run("protect", "vm1", "--peer", "b", "--timeout", "10s"), FAILED)
        self.b.start()
        self.done(self.a.run("protect", "vm1", "--peer", "b"))
        self.assertEqual(self.a.status()["state"], "protected")

    def test_stopping_a_daemon_ends_protection_in_order(self):
        self.protect()
        self.b.until_state("standby")
        self.assertEqual(self.b.kill(signal.SIGTERM), 0)
        self.a.until_state("unprotected")
        self.b.start()
        self.done(self.a.run("protect", "vm1", "--peer", "b"))
        self.assertEqual(self.a.kill(signal.SIGTERM), 0)
        until(lambda: self.b.run("list", "--json").json["guests"] == [],
              "the replica is dropped, not promoted")

    def test_a_processor_that_a_killed_daemon_kept_awake_may_sleep_again(self):
        setting = pathlib.Path("/sys/devices/system/cpu/cpu0/power/pm_qos_resume_latency_us")
        if not setting.exists():
            self.skipTest("this Linux lets no processor stay awake")

        def sleeps():
            now = setting.read_text(encoding="ascii").strip()
            return now if now != "n/a" else None

        before = until(sleeps, "nobody else keeps it awake")
        self.a.kill()
        record = self.a.directory / "run" / "vm1.awake"
        record.write_text(f"0 {before}\n", encoding="ascii")
        try:
            setting.write_text("n/a", encoding="ascii")
            self.a.start()
            self.assertEqual(until(sleeps, "it may sleep again"), before)
            self.assertFalse(record.exists())
        finally:
            setting.write_text(before, encoding="ascii")

    def test_the_floor_is_measured_on_a_running_guest(self):
        self.done(self.a.run("start", "vm1"))
        answer = self.done(self.a.run("bench", "floor", "vm1", "--count", "20", "--json")).json
        self.assertEqual((answer["schema_version"], answer["count"]), (1, 20))
        self.assertLessEqual(answer["pause_ms"]["p50"], answer["pause_ms"]["max"])
        self.assertEqual(self.a.status()["state"], "running")

    def test_json_progress_goes_nowhere_near_stdout(self):
        self.done(self.a.run("start", "vm1"))
        answer = self.done(self.a.run("protect", "vm1", "--peer", "b", "--json"))
        self.assertEqual(json.loads(answer.out)["state"], "protected")


if __name__ == "__main__":
    unittest.main(verbosity=2)
