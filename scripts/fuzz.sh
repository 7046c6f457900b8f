#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Fuzzes every decoder with libFuzzer under the address and undefined behaviour sanitizers.
#
#   scripts/fuzz.sh [--runs N | --seconds S] [--only TARGET]... [--jobs J] [--seed N] [--json]
#
# --runs, --seconds: how long each target runs (60 s). --only: these targets alone. --jobs: how many at once.
# --seed: of the mutator. Prints a table; with --json the last line is
# {"targets":{NAME:{"executions":N,"per_second":N,"findings":N,"coverage_edges":N}},"findings":N}.
# Exits 1, with the reproducer's path, when something was found. Inputs are kept in build/fuzz/corpus.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

targets=() arguments=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --only) [ $# -ge 2 ] || usage_error "--only needs a target"
      [ -f "tests/fuzz/$2_fuzz.cc" ] || usage_error "no such target: '$2'"
      targets+=("$2_fuzz"); shift 2 ;;
    --runs | --seconds | --jobs | --seed)
      [[ ${2:-} =~ ^[0-9]+$ ]] || usage_error "$1 needs a number"
      shift 2 ;;
    --json) shift ;;
    -h | --help) print_help; exit 0 ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
done
[ "${#targets[@]}" -gt 0 ] || targets=(fuzz)

step "Installing what is missing"
install_packages build run sanitize
step "Building"
configure fuzz
build fuzz "${targets[@]}"
step "Fuzzing"
exec /usr/bin/python3 tests/fuzz/fuzz.py "${arguments[@]}"
