#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# From a bare machine to all tests passed: unit and property tests, the rules of the house, real pairs in
# network namespaces, the unit tests again under the address and the thread sanitizer, and some fuzzing.
#
#   scripts/test.sh [--quick|--long] [--only REGEX]
#
# --quick: the release build only, without real pairs. --long: also those real pairs that show again, in
# another way, what others show. --only: the tests whose names match. Ends with ctest's own summary over all
# of it, and exits 0 only if every test passed. About 25 to 30 minutes on 2 cores, 7 more with --long.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

quick= long= select=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=1; shift ;;
    --long) long=1; shift ;;
    --only) select+=(-R "${2:-}"); shift 2 || usage_error "--only needs a regular expression" ;;
    -h | --help) print_help; exit 0 ;;
    *) usage_error "unknown argument '$1'" ;;
  esac
done
if [ -n "$quick" ]; then
  select+=(-LE real)
elif [ -z "$long" ]; then
  select+=(-LE long)
fi
need_root

step "Installing what is missing"
install_packages build run test
[ -n "$quick" ] || install_packages sanitize

presets=(release asan tsan)
[ -z "$quick" ] || presets=(release)
for preset in "${presets[@]}"; do
  step "Building: $preset"
  began=$SECONDS
  configure "$preset"
  build "$preset" all
  say "$((SECONDS - began)) s"
done

if [ -z "$quick" ]; then
  step "Building: fuzz, the small targets"
  began=$SECONDS
  configure fuzz
  build fuzz fuzz_small
  presets+=(fuzz)
  say "$((SECONDS - began)) s"
fi

step "Making the guest"
make_images build/release e1000

# The thread sanitizers of clang 14 and g++ 12 cannot live with addresses as random as new kernels make them.
run=()
if setarch -R true 2>/dev/null; then run=(setarch -R); fi

# One ctest over all builds, so that its closing line counts everything.
step "Testing"
all=build/tests
mkdir -p "$all"
for preset in "${presets[@]}"; do
  printf 'subdirs("%s")\n' "$ROOT/build/$preset"
done >"$all/CTestTestfile.cmake"
# Unit tests wait more than they compute; those with a hypervisor count for two (tests/CMakeLists.txt), and
# real pairs have the machine to themselves.
jobs=$(($(nproc) + 1))
exec "${run[@]}" ctest --test-dir "$all" -j "$jobs" --output-on-failure --no-tests=error "${select[@]}"
