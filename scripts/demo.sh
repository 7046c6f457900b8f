#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Shows a running guest surviving the death of its host, on this one machine, and measures it.
#
#   scripts/demo.sh [--json] [--nic virtio-net-pci[-legacy]|e1000] [--vcpus N] [--tracker auto|async|sync]
#                   [--machine pc|q35] [--epoch-ms N] [--dirty PAGES_PER_S] [--keep]
#                   [--plain]
#
# Installs what is missing, builds, makes the guest, and cleans up behind itself. --json: the last line is one
# JSON object. --keep: leaves the survivors running until interrupted. --plain: the hosts speak in plain text
# instead of TLS. Exits 0 only if the client found its TCP session alive and nothing that it had seen
# taken back.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case " $* " in *" -h "* | *" --help "*) print_help; exit 0 ;; esac
need_root
prepare_world tests/world/demo.py "$@"
exec /usr/bin/python3 tests/world/demo.py "$@"
