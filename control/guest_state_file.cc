// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/guest_state_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "arbiter/arbiter.h"
#include "ckpt/scoped_fd.h"
#include "control/config.h"
#include "control/toml_reader.h"
#include "guest/json_fields.h"
#include "guest/qemu/process.h"

namespace remusd::control {
namespace {

using guest::JsonFields;
using nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{4} << 20;  // a definition may have as much
constexpr size_t kMaxWordBytes = 64;
constexpr uint32_t kVersion = 1;
constexpr std::string_view kSuffix = ".json";
constexpr uint64_t kMaxPaceUs = uint64_t{kEpochMaxMs} * 1000;

std::string folder_of(const std::string& state_dir) {
  return state_dir + "/guests";
}
std::string path_of(const std::string& state_dir, const std::string& vm) {
  return folder_of(state_dir) + "/" + vm + std::string(kSuffix);
}

// Field 22 of /proc/PID/stat. Empty when the process is gone or a zombie.
std::string start_time(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // The name may hold spaces.
  if (name_end == std::string::npos) return "";
  std::istringstream fields(text.substr(name_end + 1));
  std::string field, state;
  fields >> state;
  for (int number = 4; number <= 22; ++number) fields >> field;
  return state == "Z" ? "" : field;
}

uint64_t to_us(Duration duration) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

json to_json(const GuestState& state) {
  json out = {
      {"version", kVersion}, {"vm", state.vm},           {"role", state.standby ? "standby" : "guest"},
      {"pid", state.pid},    {"started", state.started}, {"boot_id", state.boot_id}};
  if (state.standby) return out;
  out["launched"] = state.launched ? 1 : 0;
  out["wanted"] = state.wanted ? 1 : 0;
  out["peer"] = state.peer;
  out["pace"] = {{"interval_us", to_us(state.pace.interval)},
                 {"latency_target_us", to_us(state.pace.latency_target)},
                 {"epoch_min_us", to_us(state.pace.epoch_min)},
                 {"max_slowdown_ppm", static_cast<uint64_t>(state.pace.max_slowdown * 1e6 + 0.5)}};
  out["definition"] = json::parse(guest::to_json(state.definition), nullptr, false);
  return out;
}

Status read_pace(const json& object, primary::PaceOptions* pace) {
  uint64_t interval = 0, target = 0, floor = 0, slowdown = 0;
  JsonFields fields(object, "pace.", Code::corrupt);
  fields.number("interval_us", &interval, JsonFields::Need::required);
  fields.number("latency_target_us", &target, JsonFields::Need::required);
  fields.number("epoch_min_us", &floor, JsonFields::Need::required);
  fields.number("max_slowdown_ppm", &slowdown, JsonFields::Need::required);
  REMUSD_TRY(fields.finish());
  if (interval == 0 || interval > kMaxPaceUs || target > kMaxPaceUs || floor == 0 || floor > kMaxPaceUs ||
      slowdown > 900000) {
    return {Code::corrupt, "pace: a value is out of range"};
  }
  pace->interval = std::chrono::microseconds(interval);
  pace->latency_target = std::chrono::microseconds(target);
  pace->epoch_min = std::chrono::microseconds(floor);
  pace->max_slowdown = static_cast<double>(slowdown) / 1e6;
  return {};
}

Status read_guest(JsonFields* fields, GuestState* state) {
  uint8_t launched = 0, wanted = 0;
  fields->number("launched", &launched, JsonFields::Need::required);
  fields->number("wanted", &wanted, JsonFields::Need::required);
  fields->text("peer", &state->peer, kMaxWordBytes, JsonFields::Need::required);
  state->launched = launched != 0;
  state->wanted = wanted != 0;
  if (const json* pace = fields->object("pace", JsonFields::Need::required)) {
    fields->note(read_pace(*pace, &state->pace));
  }
  const json* given = fields->object("definition", JsonFields::Need::required);
  REMUSD_TRY(fields->finish());
  REMUSD_ASSIGN(state->definition, guest::definition_from_json(given->dump()));
  REMUSD_TRY(guest::complete_and_validate(&state->definition));
  if (state->definition.name != state->vm) return {Code::corrupt, "definition: it has another name"};
  if (state->wanted && !is_name(state->peer)) return {Code::corrupt, "peer: not a node's name"};
  return {};
}

Result<GuestState> parse(const std::string& text, const std::string& vm) {
  REMUSD_ASSIGN(const json object, guest::parse_object(text, kMaxFileBytes, "guest state", Code::corrupt));
  GuestState state;
  std::string role;
  uint32_t version = 0, pid = 0;
  JsonFields fields(object, "", Code::corrupt);
  fields.number("version", &version, JsonFields::Need::required);
  fields.text("vm", &state.vm, kMaxWordBytes, JsonFields::Need::required);
  fields.text("role", &role, kMaxWordBytes, JsonFields::Need::required);
  fields.number("pid", &pid, JsonFields::Need::required);
  fields.text("started", &state.started, kMaxWordBytes, JsonFields::Need::required);
  fields.text("boot_id", &state.boot_id, kMaxWordBytes, JsonFields::Need::required);
  state.standby = role == "standby";
  if (Status status = state.standby ? fields.finish() : read_guest(&fields, &state); !status.ok()) {
    return Status(Code::corrupt, status.message());
  }
  const bool known = role == "standby" || role == "guest";
  if (version != kVersion || !known || state.vm != vm || pid == 0 || pid > INT32_MAX ||
      state.started.empty()) {
    return Status(Code::corrupt, "it is of another version, role or guest");
  }
  state.pid = static_cast<int>(pid);
  return state;
}

Status write_whole(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new";
  {
    const ScopedFd file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!file) return Status::from_errno("create " + temporary);
    if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      return Status::from_errno("write " + temporary);
    }
    if (::fsync(file.get()) != 0) return Status::from_errno("fsync " + temporary);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return Status::from_errno("install " + path);
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const ScopedFd directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0) return Status::from_errno("fsync " + folder);
  return {};
}

}  // namespace

void identify(int pid, GuestState* state) {
  state->pid = pid;
  state->started = start_time(pid);
  state->boot_id = arbiter::this_boot_id();
}

bool lives(const GuestState& state) {
  return state.boot_id == arbiter::this_boot_id() && start_time(state.pid) == state.started;
}

Status end_process(const GuestState& state) {
  const auto process = guest::qemu::Process::adopt(state.pid);
  // Looked at once the process is held, so that its number cannot have become another's.
  if (!process.ok() || !lives(state)) return {};
  return process->kill();
}

Status save_guest_state(const std::string& state_dir, const GuestState& state) {
  return write_whole(path_of(state_dir, state.vm), guest::dump(to_json(state)) + "\n");
}

void forget_guest_state(const std::string& state_dir, const std::string& vm) {
  ::unlink(path_of(state_dir, vm).c_str());
}

Result<GuestState> load_guest_state(const std::string& state_dir, const std::string& vm) {
  const std::string path = path_of(state_dir, vm);
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::from_errno("read " + path);
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  auto state = parse(text, vm);
  if (!state.ok()) return state.status().with_context(path);
  return state;
}

std::vector<std::string> saved_guests(const std::string& state_dir, size_t limit) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_of(state_dir), ignored)) {
    const std::filesystem::path& path = entry.path();
    if (path.extension() == kSuffix && is_name(path.stem().string())) names.push_back(path.stem().string());
  }
  std::sort(names.begin(), names.end());
  names.resize(std::min(names.size(), limit));
  return names;
}

}  // namespace remusd::control
