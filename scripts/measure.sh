#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Measures what protection costs a real guest and the daemons: processor time of an idle guest's protection,
# guest progress beside unprotected, system calls of the ship thread, memory over time.
#
#   scripts/measure.sh [--json] [--rate PAGES_PER_S] [--seconds S] [--rounds N] [--memory-seconds S]
#                      [--nic virtio-net-pci[-legacy]|e1000] [--vcpus N] [--tracker auto|async|sync]
#                      [--machine pc|q35]
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case " $* " in *" -h "* | *" --help "*) print_help; exit 0 ;; esac
need_root
prepare_world tests/world/measure.py "$@"
exec /usr/bin/python3 tests/world/measure.py "$@"
