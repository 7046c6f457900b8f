// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Runs the tests/control_*_test.py, which drive real daemons as an operator would.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace {

// This test's binary is BUILD/tests/control_tests, the daemon is BUILD/remusd.
std::string daemon_binary() {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "remusd").string();
}

int run_python(const std::string& script) {
  const auto path = std::filesystem::path(REMUSD_SOURCE_DIR) / "tests" / script;
  const std::string command =
      "REMUSD_BINARY='" + daemon_binary() + "' /usr/bin/python3 '" + path.string() + "'";
  return std::system(command.c_str());
}

TEST(ControlEndToEnd, OperatorsCommandsDoWhatTheySayOnTwoDaemons) {
  EXPECT_EQ(run_python("control_cli_test.py"), 0);
}

TEST(ControlEndToEnd, RolesComeAndGoWithoutAnOperator) {
  EXPECT_EQ(run_python("control_roles_test.py"), 0);
}

TEST(ControlEndToEnd, KeysAreMadeUsedAndChanged) {
  EXPECT_EQ(run_python("control_keys_test.py"), 0);
}

TEST(ControlEndToEnd, MetricsAndDashboardsAreCleanOnALivePair) {
  EXPECT_EQ(run_python("control_grafana_test.py"), 0);
}

}  // namespace
