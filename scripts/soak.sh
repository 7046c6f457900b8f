#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Failover after failover, each of a fresh pair at a random moment under traffic; or, with --switchovers, one
# pair whose guest is handed back and forth.
#
#   scripts/soak.sh --failovers N | --switchovers N [--json] [--nic virtio-net-pci[-legacy]|e1000] [--vcpus N]
#                   [--tracker auto|async|sync] [--machine pc|q35] [--death kill|power|mixed]
#                   [--disk [--exact]] [--reboot] [--seed N] [--dirty PAGES_PER_S] [--plain]
#
# One line per failover, and a JSON object as the last line. The seed is printed: give it again to repeat the
# same moments. --death power takes the cables away first, so that no peer sees a connection being closed.
# --disk: the guest lies on a replicated disk; it writes records and a SQLite database there, and answers once
# they are flushed. After each failover all that was answered must be on the replica. --exact: and before it
# the replica must be the last committed epoch to the byte, as another program makes it from the stream; the
# failover waits for that, and its time tells nothing.
# Exits 0 only if all survived and nothing was rolled back.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case " $* " in *" -h "* | *" --help "*) print_help; exit 0 ;; esac
need_root
prepare_world tests/world/soak.py "$@"
exec /usr/bin/python3 tests/world/soak.py "$@"
