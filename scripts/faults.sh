#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Does real faults to a real pair, at random moments, and judges each by what a client outside has seen.
#
#   scripts/faults.sh [--fault N,...] [--only NAME,...] [--rounds R] [--seed S]
#                     [--arbiter file|etcd|etcd3] [--list] [--json]
#
# --fault takes the numbers of docs/faults.md, --only the names that --list shows; all of them without either.
# --rounds: so often each. The seed is printed; it repeats what was chosen at random, not what the machine
# makes of it. Scenarios of the protocol's steps need a daemon with fail points, built with the asan preset.
# --arbiter: who is asked for the right to run: a file that both hosts see, an etcd with one member, or a
# cluster of three, of which one fails in some scenarios. A scenario that has no meaning with this arbiter is
# told as n/a, and is not counted as a round.
#
# One line for each round, and a JSON object as the last line. Exits 0 only if no round failed: nothing that
# was answered was lost or rolled back, no two sides were heard, somebody was heard who had to be, and it
# was told.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case " $* " in *" -h "* | *" --help "*) print_help; exit 0 ;; esac
need_root
prepare_world tests/faults/run.py "$@"
if [ -z "${REMUSD_FAULTS_BUILD:-}" ]; then
  step "Building with fail points"
  install_packages sanitize
  configure asan
  build asan remusd
fi
exec /usr/bin/python3 tests/faults/run.py "$@"
