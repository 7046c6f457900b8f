# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#
# What the scripts share. Source it: it sets the shell's strict mode and moves to the repository's root.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

# Everything for a reader goes to stderr, so that stdout can end in one JSON line.
say() { printf '%s\n' "$*" >&2; }
step() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
usage_error() { printf '%s: %s (see --help)\n' "$(basename "$0")" "$*" >&2; exit 2; }

# The comment at the head of the calling script is its help text.
print_help() { awk 'NR > 2 && /^#/ { sub(/^# ?/, ""); print; next } NR > 2 { exit }' "$0"; }

need_root() { [ "$(id -u)" = 0 ] || die "must run as root: it makes network namespaces and TAP devices"; }

# packages SECTION...: the names in those sections of scripts/packages.txt.
packages() {
  local wanted=" $* "
  awk -v wanted="$wanted" '
    match($0, /\[[a-z]+\]/) { section = substr($0, RSTART + 1, RLENGTH - 2); next }
    /^#/ || NF == 0 { next }
    index(wanted, " " section " ") { print $1 }' scripts/packages.txt
}

# install_packages SECTION...: installs what is missing; does nothing, quickly, when all is there.
install_packages() {
  local names missing=() name
  mapfile -t names < <(packages "$@")
  [ "${#names[@]}" -gt 0 ] || die "no packages in sections: $*"
  local installed
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${names[@]}" 2>/dev/null || true)
  for name in "${names[@]}"; do
    grep -qx "$name installed" <<<"$installed" || missing+=("$name")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "must run as root to install: ${missing[*]}"
  say "installing ${#missing[@]} packages: ${missing[*]}"
  apt_get install -y --no-install-recommends "${missing[@]}" ||
    { apt_get update && apt_get install -y --no-install-recommends "${missing[@]}"; } ||
    die "apt-get could not install: ${missing[*]}"
}

# apt-get without questions; what it says goes to stderr, and only when it fails.
apt_get() {
  local log status=0
  log=$(mktemp)
  DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" \
    >"$log" 2>&1 </dev/null || status=$?
  [ "$status" = 0 ] || tail -n 5 "$log" >&2
  rm -f "$log"
  return "$status"
}

# configure PRESET: cmake --preset, with ccache when it is there; quick when nothing changed.
configure() {
  local preset=$1 log launcher=()
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  log=$(mktemp)
  cmake --preset "$preset" "${launcher[@]}" >"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; rm -f "$log"; die "cmake --preset $preset failed"; }
  rm -f "$log"
}

# build PRESET TARGET...: quietly, but tells everything when it fails.
build() {
  local preset=$1 log
  shift
  log=$(mktemp)
  cmake --build "build/$preset" --target "$@" >"$log" 2>&1 ||
    { tail -n 60 "$log" >&2; rm -f "$log"; die "building $* ($preset) failed"; }
  rm -f "$log"
}

# prepare_world PROGRAM ARGUMENT...: packages, the daemon, and the test guest that these arguments need, once
# the program has found nothing wrong with them. REMUSD_BUILD names another build folder whose programs are to
# be used as they are.
prepare_world() {
  local began=$SECONDS program=$1
  shift
  step "Installing what is missing"
  install_packages build run test
  /usr/bin/python3 "$program" "$@" --check-arguments || exit $?
  local folder=${REMUSD_BUILD:-build/release}
  if [ -z "${REMUSD_BUILD:-}" ]; then
    step "Building"
    configure release
    build release remusd guest_service
  fi
  step "Making the guest"
  make_images "$folder" "$@"
  say "ready after $((SECONDS - began)) s"
}

# make_images BUILD_FOLDER ARGUMENT...: the generic kernel only where an argument asks for e1000, and so on.
make_images() {
  local service=$1/tests/guest_service/guest_service
  scripts/guest-image.sh --service "$service"
  case " $* " in *e1000*) scripts/guest-image.sh --flavour generic --service "$service" ;; esac
  case " $* " in *" --disk "*) scripts/guest-image.sh --with disk --service "$service" ;; esac
}
