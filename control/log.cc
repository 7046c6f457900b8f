// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace remusd::control {
namespace {

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("remusd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z level=%l %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

// A value inside quotes on one line, whatever a peer or a hypervisor put into it.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

}  // namespace

Status set_log_level(std::string_view level) {
  if (level == "debug") {
    logger().set_level(spdlog::level::debug);
  } else if (level == "info") {
    logger().set_level(spdlog::level::info);
  } else if (level == "warn") {
    logger().set_level(spdlog::level::warn);
  } else if (level == "error") {
    logger().set_level(spdlog::level::err);
  } else {
    return {Code::invalid, "unknown log level '" + std::string(level) + "'; use debug, info, warn or error"};
  }
  return {};
}

void log(LogLevel level, const LogFields& fields, std::string_view message) {
  std::string line;
  if (!fields.vm.empty()) line += "vm=" + std::string(fields.vm) + " ";
  if (fields.gen != 0) line += "gen=" + std::to_string(fields.gen) + " ";
  if (fields.epoch != 0) line += "epoch=" + std::to_string(fields.epoch) + " ";
  line += "msg=" + quoted(message);
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  logger().log(kLevels[static_cast<int>(level)], spdlog::string_view_t(line));
}

}  // namespace remusd::control
