// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/cli.h"

int main(int argc, char** argv) {
  return remusd::control::run_command_line(argc, argv);
}
