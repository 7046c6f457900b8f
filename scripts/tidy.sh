#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Runs clang-tidy, as .clang-tidy says, over the sources of all folders, or over those named.
#
#   scripts/tidy.sh [FILE.cc]...
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-} in -h | --help) print_help; exit 0 ;; esac
install_packages build run
configure dev
if [ $# -eq 0 ]; then
  mapfile -t sources < <(find ckpt guest netbuf disk arbiter primary backup control -name '*.cc' | sort)
  set -- "${sources[@]}"
fi
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" clang-tidy -p build/dev --quiet
