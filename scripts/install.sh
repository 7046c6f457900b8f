#!/bin/bash
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
# Installs what is missing of scripts/packages.txt with apt-get.
#
#   scripts/install.sh [build] [run] [test] [sanitize]     sections; all when none is named
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in -h | --help) print_help; exit 0 ;; esac
for section in "$@"; do
  case $section in build | run | test | sanitize) ;; *) usage_error "unknown section '$section'" ;; esac
done
[ $# -gt 0 ] || set -- build run test sanitize
install_packages "$@"
