#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Keys as an operator meets them: making them, daemons with and without them, changing them in use."""
import datetime
import os
import pathlib
import signal
import socket
import ssl
import stat
import tempfile
import unittest

from control_pair import PATIENCE_S, Node, Pair, free_port, keys, until

DONE, FAILED, USAGE = range(3)


class Making(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="remusd-keys-")
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)
        self.dir = str(self.root / "ca")

    def made(self, *arguments):
        result = keys(*arguments, "--dir", self.dir)
        self.assertEqual(result.code, DONE, result.err)
        return result

    def refused(self, code, *arguments, words=()):
        result = keys(*arguments, "--dir", self.dir)
        self.assertEqual(result.code, code, result.err)
        self.assertEqual((result.out, result.err.count("\n")), ("", 1), result.err)
        for word in words:
            self.assertIn(word, result.err)

    def test_keys_are_made_once_and_private(self):
        self.made("init")
        self.made("issue", "b")
        out = self.root / "carried"
        written = keys("issue", "c", "--dir", self.dir, "--out", str(out), "--json").json["files"]
        self.assertEqual(len(written), 3)
        for path in (f"{self.dir}/ca.key", f"{self.dir}/b.key", out / "node.key"):
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600, path)
        self.assertEqual((out / "ca.crt").read_text(), pathlib.Path(self.dir, "ca.crt").read_text())
        before = {path: path.read_text() for path in (*pathlib.Path(self.dir).iterdir(), *out.iterdir())}
        self.refused(FAILED, "init", words=("ca.key", "not overwritten"))
        self.refused(FAILED, "issue", "b", words=("b.key", "not overwritten"))
        self.refused(FAILED, "issue", "d", "--out", str(out), words=("node.key", "not overwritten"))
        self.assertEqual({path: path.read_text() for path in before}, before)
        # The authority's own host: ca.crt is there and the same.
        self.made("issue", "a", "--out", self.dir)

    def test_wrong_usage_is_told(self):
        self.refused(FAILED, "issue", "b", words=("ca.crt", "remusd keys init"))
        self.refused(FAILED, "show", words=("no certificates", "remusd keys init"))
        self.made("init")
        self.refused(USAGE, "issue", "No Such Name", words=("No Such Name",))
        self.refused(USAGE, "issue", "b", "--days", "0", words=("--days",))
        self.refused(USAGE, "issue")
        self.refused(USAGE, "show", f"{self.dir}/ca.key", words=("ca.key", "no certificate"))
        self.refused(FAILED, "show", "/nonexistent.crt", words=("/nonexistent.crt",))
        os.chmod(f"{self.dir}/ca.key", 0o640)
        self.refused(FAILED, "issue", "b", words=("ca.key", "can be read by others"))

    def test_show_tells_whose_they_are_and_how_long(self):
        self.made("init")
        self.made("issue", "b", "--days", "100")
        shown = self.made("show").out
        for word in ("CN=b", "node         b", " days left", "fingerprint  SHA-256", "(authority)"):
            self.assertIn(word, shown)
        answer = self.made("show", "--json").json
        self.assertEqual(answer["schema_version"], 1)
        by_file = {os.path.basename(one["file"]): one for one in answer["certificates"]}
        self.assertEqual(set(by_file), {"ca.crt", "b.crt"})
        node, authority = by_file["b.crt"], by_file["ca.crt"]
        self.assertEqual((node["node"], node["authority"]), ("b", False))
        self.assertEqual(node["issuer"], authority["subject"])
        self.assertTrue(authority["authority"])
        self.assertIn(node["days_left"], (99, 100))
        self.assertIn(authority["days_left"], (3649, 3650))
        datetime.datetime.strptime(node["not_after"], "%Y-%m-%dT%H:%M:%SZ")
        # The authority's end is everybody's.
        self.made("issue", "c", "--days", "36500")
        late = keys("show", f"{self.dir}/c.crt", "--json").json["certificates"][0]
        self.assertEqual(late["not_after"], authority["not_after"])


class Daemons(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="remusd-keys-")
        self.addCleanup(temporary.cleanup)
        self.root = temporary.name

    def fails_to_serve(self, node, *words):
        with self.assertRaises(AssertionError):
            node.start()
        self.assertEqual(node.process.wait(PATIENCE_S), FAILED)
        said = node.log.read_text()
        self.assertEqual(said.count("\n"), 1, said)
        for word in words:
            self.assertIn(word, said)
        self.assertEqual(node.run("serve", "--config", str(node.config), "--dry-run").code, FAILED)

    def test_without_keys_a_node_that_listens_does_not_serve(self):
        node = Node(self.root, "a", free_port(), {}, f"{self.root}/arbiter", keys=f"{self.root}/none")
        self.fails_to_serve(node, "remusd keys init", "remusd keys issue a", "insecure = true")

    def test_the_keys_of_another_node_or_that_others_read_are_refused(self):
        authority = f"{self.root}/authority"
        keys("init", "--dir", authority)
        keys("issue", "c", "--dir", authority, "--out", f"{self.root}/k")
        node = Node(self.root, "a", free_port(), {}, f"{self.root}/arbiter", keys=f"{self.root}/k")
        self.fails_to_serve(node, "node 'c'", "node 'a'")
        os.chmod(f"{self.root}/k/node.key", 0o644)
        node.log.unlink()
        self.fails_to_serve(node, "node.key", "can be read by others")

    def test_without_keys_and_peers_a_node_serves_but_does_not_protect(self):
        node = Node(self.root, "a", free_port(), {"b": "127.0.0.1:1"}, f"{self.root}/arbiter",
                    keys=f"{self.root}/k")
        node.config.write_text(node.config.read_text().replace(f'listen = "127.0.0.1:{node.port}"', ""))
        node.define("vm1", 'name = "vm1"\ndriver = "sim"\nmemory_mib = 8\n')
        self.addCleanup(node.kill)
        node.start()
        self.assertEqual(node.run("start", "vm1").code, DONE)
        refused = node.run("protect", "vm1", "--peer", "b")
        self.assertEqual((refused.code, refused.err.count("\n")), (FAILED, 1), refused.err)
        self.assertIn("remusd keys issue a", refused.err)
        self.assertNotIn("remusd_peer_tls ", node.http("/metrics")[1])
        # Keys that come later need no restart.
        keys("init", "--dir", f"{self.root}/authority")
        keys("issue", "a", "--dir", f"{self.root}/authority", "--out", f"{self.root}/k")
        node.process.send_signal(signal.SIGHUP)
        until(lambda: "remusd_peer_tls 1" in node.http("/metrics")[1], "the keys are read")
        self.assertIn("connect", node.run("protect", "vm1", "--peer", "b").err)

    def test_plain_text_is_warned_of(self):
        pair = Pair(tls=False)
        self.addCleanup(pair.close)
        self.assertIn("INSECURE", pair.a.log.read_text())
        self.assertIn("remusd_peer_tls 0", pair.a.http("/metrics")[1])
        self.assertEqual(pair.a.run("start", "vm1").code, DONE)
        self.assertEqual(pair.a.status()["transport"], "")
        self.assertEqual(pair.a.run("protect", "vm1", "--peer", "b").code, DONE)
        self.assertEqual(pair.a.status()["transport"], "plain")
        self.assertIn("NOT ENCRYPTED", pair.a.run("status", "vm1").out)


class Peers(unittest.TestCase):
    def setUp(self):
        self.pair = Pair()
        self.addCleanup(self.pair.close)
        self.a, self.b = self.pair.a, self.pair.b
        self.root = self.pair.temporary.name

    def protect(self):
        self.assertEqual(self.a.run("start", "vm1").code, DONE)
        done = self.a.run("protect", "vm1", "--peer", "b")
        self.assertEqual(done.code, DONE, done.err + self.a.log.read_text() + self.b.log.read_text())

    def expiry(self, node):
        for line in node.http("/metrics")[1].splitlines():
            if line.startswith("remusd_certificate_expiry_timestamp_seconds "):
                return float(line.split()[1])
        return None

    def hup(self, node, what):
        seen = len(node.log.read_text())
        node.process.send_signal(signal.SIGHUP)
        return until(lambda: what in node.log.read_text()[seen:] and node.log.read_text()[seen:],
                     f"'{what}' after SIGHUP")

    def renew(self, name, *arguments, authority=None):
        """New keys in place of the old ones, as an operator would move them."""
        fresh = tempfile.mkdtemp(dir=self.root)
        done = keys("issue", name, "--dir", authority or self.pair.authority, "--out", fresh, *arguments)
        self.assertEqual(done.code, DONE, done.err)
        for file in os.listdir(fresh):
            os.replace(f"{fresh}/{file}", f"{self.root}/keys-of-{name}/{file}")

    def test_keys_change_while_protection_goes_on(self):
        self.protect()
        self.assertEqual(self.a.status()["transport"], "tls")
        self.assertEqual(self.b.until_state("standby")["transport"], "tls")
        self.assertIn("remusd_peer_tls 1", self.b.http("/metrics")[1])
        before, id_before = self.expiry(self.a), self.a.status()["protection_id"]
        for name in "ab":
            self.renew(name, "--days", "20")
        self.assertIn("expires at", self.hup(self.a, "expires at"))
        self.hup(self.b, "valid to")
        self.assertLess(self.expiry(self.a), before - 700 * 86400)
        acked = self.a.status()["epochs"]["acked"]
        until(lambda: self.a.status()["epochs"]["acked"] > acked + 10, "epochs go on")
        now = self.a.status()
        self.assertEqual((now["state"], now["protection_id"]), ("protected", id_before))
        # A reload that fails keeps what there is, and says so.
        pathlib.Path(self.root, "keys-of-a", "node.crt").write_text("torn")
        self.hup(self.a, "those from before stay in use")
        self.assertIsNotNone(self.expiry(self.a))
        self.assertEqual(self.a.run("unprotect", "vm1").code, DONE)
        self.assertEqual(self.a.run("protect", "vm1", "--peer", "b").code, DONE)

    def test_a_peer_of_another_authority_is_refused_and_both_say_so(self):
        other = f"{self.root}/other"
        keys("init", "--dir", other)
        self.renew("b", authority=other)
        self.hup(self.b, "valid to")
        self.assertEqual(self.a.run("start", "vm1").code, DONE)
        refused = self.a.run("protect", "vm1", "--peer", "b")
        self.assertEqual(refused.code, FAILED, refused.err)
        self.assertIn("one authority", refused.err)
        self.assertIn("one authority", self.a.log.read_text())
        until(lambda: "the peer refused us" in self.b.log.read_text(), "b says so")
        self.assertEqual(self.a.status()["state"], "running")
        self.assertEqual(self.b.run("list", "--json").json["guests"], [])

    def test_strangers_are_refused_by_address_and_keep_nobody_waiting(self):
        silent = [socket.create_connection(("127.0.0.1", self.b.port)) for _ in range(4)]
        self.addCleanup(lambda: [one.close() for one in silent])
        with socket.create_connection(("127.0.0.1", self.b.port)) as stranger:
            address = "127.0.0.1:%d" % stranger.getsockname()[1]
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.settimeout(PATIENCE_S)
            while stranger.recv(4096):
                pass
        said = until(lambda: [line for line in self.b.log.read_text().splitlines()
                              if address in line and "does not speak TLS" in line], "the stranger is told of")
        self.assertIn("level=warn", said[0])
        # Nor is one let in who speaks TLS but has no certificate, or an older version.
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.maximum_version = version
            with self.assertRaises((ssl.SSLError, OSError)):
                with socket.create_connection(("127.0.0.1", self.b.port)) as plain:
                    with context.wrap_socket(plain) as wrapped:
                        if not wrapped.recv(1):
                            raise OSError("closed")
        for words in ("has no certificate", "speaks no TLS 1.3"):
            until(lambda words=words: words in self.b.log.read_text(), "b says so")
        self.protect()  # four of them still say nothing


if __name__ == "__main__":
    unittest.main()
