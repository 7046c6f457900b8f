#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Measures remusd, its floors, and what people would use instead, side by side on the same guest and
# workloads.
#
#   scripts/bench.sh [--quick] [--json] [--only NAME,...] [--seconds S] [--rounds N] [--failovers N]
#                    [--latency-target D] [--max-slowdown P] [--out FOLDER] [--plain]
#
# Prints tables and, for each figure that is wanted, whether it holds; leaves bench.json and a chart (SVG) for
# each figure in build/bench. --json: the last line is the same JSON object. --quick: within 8 minutes on 2
# cores once built (all of it: about 25). --only: of remusd, peers, engine, failover, many (8 guests on one
# pair) and large (a 4 GiB guest), or single workloads (idle, cpu, dirty_1k, dirty_8k, dirty_40k,
# dirty_8k_5ms, dirty_8k_2ms, incompressible, compressible, dirty_8k_small_set, dirty_8k_large_set,
# dirty_8k_random, kv, kv_latency_target, web) and peers (migrate_ignore_shared, migrate_live, snapshot_save,
# background_snapshot, colo_unix). --plain: plain text between the hosts instead of TLS. What could not be
# measured is null, with a note. Exits 0 when everything that was asked for ran, whether or not the figures
# are as wanted. docs/performance.md tells how it is done.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case " $* " in *" -h "* | *" --help "*) print_help; exit 0 ;; esac
need_root
prepare_world bench/bench.py "$@"
scripts/guest-image.sh --with servers \
  --service "${REMUSD_BUILD:-build/release}/tests/guest_service/guest_service"
if [ -z "${REMUSD_BUILD:-}" ]; then
  build release benchmarks
fi
exec /usr/bin/python3 bench/bench.py "$@"
