#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""What two daemons do by themselves over time: protect again, and never what an operator has ended."""
import signal
import unittest

from control_pair import Pair, until

DONE, FAILED, USAGE, UNPROTECTED, NO_SUCH_GUEST, TIMED_OUT, UNSAFE = range(7)
SETTINGS = "[protection]\nheartbeat_lost = 25\nreprotect_min_ms = 300\nreprotect_max_ms = 1000\n"


class Roles(unittest.TestCase):
    extra = SETTINGS

    def setUp(self):
        self.pair = Pair(self.extra)
        self.addCleanup(self.pair.close)
        self.a, self.b = self.pair.a, self.pair.b

    def logs(self):
        return "\n" + self.a.log.read_text() + self.b.log.read_text()

    def done(self, result):
        self.assertEqual(result.code, DONE, result.err + self.logs())
        return result

    def protect(self):
        self.done(self.a.run("start", "vm1"))
        self.done(self.a.run("protect", "vm1", "--peer", "b"))
        self.b.until_state("standby")

    def wait_protected(self, node):
        self.done(node.run("wait", "vm1", "--state", "protected", "--timeout", "30s"))


class ProtectAgain(Roles):
    def test_a_promoted_guest_is_protected_once_its_old_host_is_back(self):
        self.protect()
        self.a.kill()
        on_b = self.b.until_state("unprotected")
        self.assertEqual(on_b["reprotect"]["peer"], "a")
        tried = until(lambda: (self.b.status()["reprotect"]["attempts"] >= 2) and self.b.status(), "attempts")
        self.assertEqual(tried["generation"], on_b["generation"], "a peer that is away costs no generation")
        self.assertIn("127.0.0.1", tried["reprotect"]["last_error"])
        self.assertIn("next in", self.b.run("status", "vm1").out + "next in")
        self.assertIn('remusd_reprotect_wanted{vm="vm1"} 1', self.b.http("/metrics")[1])
        self.a.start()
        self.wait_protected(self.b)
        self.assertIsNone(self.b.status()["reprotect"])
        self.assertEqual(self.a.until_state("standby")["peer"], "b")
        # And the way back.
        self.b.kill()
        self.assertEqual(self.a.until_state("unprotected")["role"], "primary")
        self.b.start()
        self.wait_protected(self.a)

    def test_a_fenced_primary_becomes_the_backup(self):
        self.protect()
        self.done(self.a.run("failover", "vm1"))
        self.wait_protected(self.b)
        on_a = self.a.until_state("standby")
        self.assertEqual((on_a["role"], on_a["peer"], on_a["pid"]), ("backup", "b", 0))

    def test_a_primary_that_was_frozen_for_long_becomes_the_backup(self):
        self.protect()
        self.a.process.send_signal(signal.SIGSTOP)
        try:
            self.b.until_state("unprotected")
            until(lambda: self.b.status()["state"] == "connecting", "an attempt that nobody answers")
        finally:
            self.a.process.send_signal(signal.SIGCONT)
        self.wait_protected(self.b)
        self.assertEqual(self.a.until_state("standby")["role"], "backup")

    def test_a_backup_that_went_in_order_protects_again_when_it_is_back(self):
        self.protect()
        self.assertEqual(self.b.kill(signal.SIGTERM), 0)
        self.assertEqual(self.a.until_state("unprotected")["reprotect"]["peer"], "b")
        self.assertEqual(self.a.run("status", "vm1").code, UNPROTECTED)
        self.b.start()
        self.wait_protected(self.a)

    def test_the_operators_protect_meets_ours(self):
        self.protect()
        self.b.kill()
        self.a.until_state("unprotected")
        self.b.start()
        self.done(self.a.run("protect", "vm1", "--peer", "b"))
        self.assertEqual(self.a.status()["state"], "protected")


class Operator(Roles):
    def test_unprotected_by_command_stays_unprotected(self):
        self.protect()
        self.done(self.a.run("unprotect", "vm1"))
        self.assertIsNone(self.a.status()["reprotect"])
        self.assertEqual(self.a.run("wait", "vm1", "--state", "protected", "--timeout", "2s").code,
                         UNPROTECTED)

    def test_unprotect_ends_the_attempts(self):
        self.protect()
        self.b.kill()
        self.a.until_state("unprotected")
        self.done(self.a.run("unprotect", "vm1"))
        self.assertIsNone(self.a.status()["reprotect"])
        self.assertEqual(self.a.run("unprotect", "vm1").code, UNPROTECTED)
        self.b.start()
        self.assertEqual(self.a.run("wait", "vm1", "--state", "protected", "--timeout", "2s").code,
                         UNPROTECTED)

    def test_ordinary_life_leaves_no_peer_behind(self):
        """Stopped, unprotected or never protected: it can be started again without force."""
        self.protect()
        self.done(self.a.run("stop", "vm1"))
        self.done(self.a.run("start", "vm1"))
        self.assertEqual(self.a.run("protect", "vm1", "--peer", "nowhere").code, FAILED)
        self.done(self.a.run("stop", "vm1"))
        self.done(self.a.run("start", "vm1"))
        self.done(self.a.run("protect", "vm1", "--peer", "b"))
        self.done(self.a.run("unprotect", "vm1"))
        self.done(self.a.run("stop", "vm1", "--graceful"))
        self.done(self.a.run("start", "vm1"))

    def test_a_start_that_could_forget_what_was_acknowledged_is_refused(self):
        self.protect()
        self.b.process.send_signal(signal.SIGSTOP)  # It cannot take over ...
        self.a.kill()
        self.b.kill()  # ... and nobody has decided.
        self.a.start()
        refused = self.a.run("start", "vm1")
        self.assertEqual(refused.code, UNSAFE)
        self.assertEqual(refused.err.count("\n"), 1)
        for word in ("'b'", "newer", "--force"):
            self.assertIn(word, refused.err)
        self.assertIn("Danger", self.a.run("start", "--help").out)
        self.done(self.a.run("start", "vm1", "--force"))
        self.done(self.a.run("stop", "vm1"))
        self.done(self.a.run("start", "vm1"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
