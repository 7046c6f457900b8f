// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/machine.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

#include "guest/qemu/attached.h"
#include "guest/qemu/probe.h"

namespace remusd::guest::qemu {
namespace {

using namespace std::chrono_literals;

constexpr Duration kStartTimeout = 60s;  // QEMU's own start, on a busy host
constexpr Duration kQuitTimeout = 500ms;
constexpr Duration kStrangerTimeout = 2s;

/// Is something alive behind a socket that is in our way? A standby that its daemon left behind is ended; a
/// guest is not ours to end.
Status make_way(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};
  auto other = Qmp::connect(path, kStrangerTimeout, kStrangerTimeout);
  if (!other.ok() && other.status().code() != Code::timed_out) {  // Nobody listens.
    ::unlink(path.c_str());
    return {};
  }
  const std::string refusal = "a QEMU already listens on '" + path + "'; attach to it, or end it";
  if (!other.ok()) return {Code::exists, refusal};
  REMUSD_ASSIGN(const nlohmann::json status, (*other)->call("query-status"));
  if (text_member(status, "status") != "inmigrate") return {Code::exists, refusal};
  REMUSD_ASSIGN(const int pid, (*other)->peer_pid());
  REMUSD_ASSIGN(const Process process, Process::adopt(pid));
  REMUSD_TRY(process.kill());
  ::unlink(path.c_str());
  return {};
}

Result<ScopedFd> listen_at(const std::string& path) {
  REMUSD_TRY(make_way(path));
  ScopedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return Status::from_errno("make a socket for QMP");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REMUSD_ASSERT(path.size() < sizeof(address.sun_path), "paths_of() has checked it");
  std::memcpy(address.sun_path, path.data(), path.size());
  // Before listen() nobody can connect, so the rights are set in time.
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(socket.get(), 1) != 0) {
    return Status::from_errno("listen at QMP socket '" + path + "'");
  }
  return socket;
}

/// QEMU made its monitor's socket there, so it can open what lies beside it.
std::string save_path_beside(const std::string& monitor) {
  return monitor + ".state";
}

Status finish(Machine* machine, bool writable) {
  REMUSD_ASSIGN(Probe found, probe(machine->general.get()));
  machine->facts = std::move(found.facts);
  REMUSD_ASSIGN(machine->ram,
                open_ram(machine->process.pid(), machine->facts.memory_bytes, found.mem_path, writable));
  machine->ram.block = std::move(found.ram_block);
  REMUSD_ASSIGN(machine->devices, machine->list_devices());
  return {};
}

/// What a machine that is launched here has, running or not: its cards, its files.
Status describe_own(const Definition& definition, const DriverOptions& options, const Paths& paths,
                    Machine* machine) {
  REMUSD_ASSIGN(machine->tracker, tracker_kind(options.tracker));
  machine->nics = nic_endpoints(definition, options);
  REMUSD_ASSIGN(machine->disks, disk_endpoints(definition, options));
  if (!definition.attach_qmp.empty()) {  // Made for an attached guest: the same cards, under their own names.
    REMUSD_ASSIGN(const auto originals, attached_nics(definition));
    for (size_t i = 0; i < originals.size(); ++i) {
      if (i >= machine->nics.size()) {
        return {Code::corrupt, "definition: fewer cards than in attach_command"};
      }
      machine->nics[i].id = originals[i].id;
      machine->nics[i].mac = originals[i].mac;
    }
  }
  machine->save_path = save_path_beside(paths.monitor);
  machine->awake_path = awake_path(definition, options);
  machine->own_files = {paths.monitor, paths.fast, machine->save_path};
  for (const NicEndpoint& nic : machine->nics) machine->own_files.push_back(nic.socket_path);
  return {};
}

/// A guest whose daemon died while its base stream was taken stands still, migrated away as QEMU believes.
Status go_on(Qmp* qmp) {
  REMUSD_ASSIGN(const nlohmann::json answer, qmp->call("query-status"));
  const std::string status = text_member(answer, "status");
  if (status == "inmigrate") return {Code::unsafe, "it waits for a promotion, there is no guest in it"};
  return status == "postmigrate" ? qmp->call("cont").status() : Status();
}

Status connect_monitors(const Paths& paths, Duration timeout, Machine* machine) {
  REMUSD_ASSIGN(machine->general, Qmp::connect(paths.monitor, timeout, kStartTimeout));
  REMUSD_ASSIGN(machine->fast, Qmp::connect(paths.fast, timeout, kStartTimeout));
  machine->fast->ignore_events();
  return {};
}

Status complete_launch(const Paths& paths, const DriverOptions& options, Role role, Machine* machine) {
  REMUSD_TRY(connect_monitors(paths, std::chrono::milliseconds(options.qmp_timeout_ms), machine));
  REMUSD_TRY(finish(machine, role == Role::standby));
  if (role == Role::primary) return {};
  // QEMU writes nothing there while it waits, but the image begins as zeros whatever it does.
  REMUSD_TRY(clear_pages(machine->ram.file.get(), machine->facts.memory_bytes));
  return machine->general
      ->call("migrate-set-capabilities",
             {{"capabilities", {{{"capability", "x-ignore-shared"}, {"state", true}}}}})
      .status();
}

}  // namespace

Status Machine::destroy() {
  if (general && !process.gone(Duration::zero())) {
    const std::unique_lock lock(mutex, std::try_to_lock);  // Held: no time to wait, the kill is enough.
    // Not waiting for the answer: what counts is that the process ends.
    if (lock.owns_lock() && general->write(R"({"execute":"quit"})").ok()) (void)process.gone(kQuitTimeout);
  }
  REMUSD_TRY(process.kill());
  for (const std::string& path : own_files) ::unlink(path.c_str());
  return {};
}

Status Machine::explain(const Status& status) const {
  if (status.ok() || status.code() != Code::unavailable || !process.gone(kQuitTimeout)) return status;
  return ended();
}

Status Machine::ended() const {
  const std::string words = process.last_words();
  return {Code::unavailable, "QEMU (pid " + std::to_string(process.pid()) + ") ended" +
                                 (words.empty() ? std::string() : ": " + words)};
}

Status Machine::reconnect() {
  for (Qmp* monitor : {general.get(), fast.get()}) {
    if (monitor != nullptr && !monitor->broken().ok()) REMUSD_TRY(monitor->reconnect());
  }
  return {};
}

Result<std::vector<std::string>> Machine::list_devices() {
  std::vector<std::string> found;
  for (const char* path : {"/machine/peripheral", "/machine/peripheral-anon"}) {
    REMUSD_ASSIGN(const nlohmann::json list, general->call("qom-list", {{"path", path}}));
    if (!list.is_array()) return Status(Code::corrupt, std::string("QMP qom-list ") + path + ": no list");
    for (const nlohmann::json& entry : list) {
      if (const std::string type = text_member(entry, "type"); type.starts_with("child<"))
        found.push_back(text_member(entry, "name") + " (" + type + ")");
    }
  }
  return found;
}

Result<std::unique_ptr<Machine>> launch(const Definition& definition, const DriverOptions& options,
                                        Role role) {
  REMUSD_ASSIGN(const Paths paths, paths_of(definition, options));
  auto machine = std::make_unique<Machine>();
  REMUSD_TRY(describe_own(definition, options, paths, machine.get()));
  std::vector<std::string> argv;
  if (definition.attach_qmp.empty()) {
    argv = build_command(definition, options, machine->nics, machine->disks, role);
  } else {
    REMUSD_ASSERT(role == Role::standby, "an attached guest is not started");
    REMUSD_ASSIGN(argv, standby_command(definition, options, machine->nics));
  }

  REMUSD_ASSIGN(ScopedFd monitor, listen_at(paths.monitor));
  REMUSD_ASSIGN(ScopedFd fast, listen_at(paths.fast));
  for (const NicEndpoint& nic : machine->nics) ::unlink(nic.socket_path.c_str());

  auto process = Process::spawn(argv, {monitor.get(), fast.get()}, paths.log);
  if (!process.ok()) {
    for (const std::string& path : machine->own_files) ::unlink(path.c_str());
    return process.status();
  }
  machine->process = *std::move(process);
  // From here on QEMU alone holds the listening ends: when it ends, whoever waits to be greeted is told.
  monitor.reset();
  fast.reset();
  if (Status status = complete_launch(paths, options, role, machine.get()); !status.ok()) {
    status = machine->explain(status);
    (void)machine->destroy();
    return status.with_context("start QEMU for guest " + definition.name);
  }
  return machine;
}

Result<std::unique_ptr<Machine>> rejoin(const Definition& definition, const DriverOptions& options, int pid) {
  const Duration timeout = std::chrono::milliseconds(options.qmp_timeout_ms);
  REMUSD_ASSIGN(const Paths paths, paths_of(definition, options));
  auto machine = std::make_unique<Machine>();
  REMUSD_TRY(describe_own(definition, options, paths, machine.get()));
  REMUSD_ASSIGN(machine->process, Process::adopt(pid, paths.log));
  REMUSD_ASSIGN(machine->general, Qmp::connect(paths.monitor, timeout, timeout));
  REMUSD_ASSIGN(machine->fast, Qmp::connect(paths.fast, timeout, timeout));
  for (const Qmp* qmp : {machine->general.get(), machine->fast.get()}) {
    REMUSD_ASSIGN(const int peer, qmp->peer_pid());
    if (peer != pid) {
      return Status(Code::unsafe, "process " + std::to_string(peer) + ", not " + std::to_string(pid) +
                                      ", listens on '" + qmp->path() + "'");
    }
  }
  machine->fast->ignore_events();
  REMUSD_TRY(finish(machine.get(), false));
  REMUSD_TRY(go_on(machine->general.get()));
  return machine;
}

Result<std::unique_ptr<Machine>> take_over(const Definition& definition, const DriverOptions& options) {
  const Duration timeout = std::chrono::milliseconds(options.qmp_timeout_ms);
  auto machine = std::make_unique<Machine>();
  REMUSD_ASSIGN(machine->tracker, tracker_kind(options.tracker));
  REMUSD_ASSIGN(machine->general, Qmp::connect(definition.attach_qmp, timeout, timeout));
  machine->save_path = save_path_beside(definition.attach_qmp);
  machine->awake_path = awake_path(definition, options);
  machine->own_files = {machine->save_path};
  REMUSD_ASSIGN(const int pid, machine->general->peer_pid());
  REMUSD_ASSIGN(machine->process, Process::adopt(pid));
  REMUSD_ASSIGN(machine->nics, attached_nics(definition));
  REMUSD_TRY(finish(machine.get(), false));
  // A QEMU that a daemon of ours has started keeps a second monitor beside the first.
  constexpr std::string_view kMonitor = ".qmp";
  const std::string& path = definition.attach_qmp;
  if (path.ends_with(kMonitor)) {
    const std::string beside = path.substr(0, path.size() - kMonitor.size()) + ".fast.qmp";
    auto fast = Qmp::connect(beside, timeout, timeout);
    if (fast.ok() && (*fast)->peer_pid().ok() && *(*fast)->peer_pid() == pid) {
      machine->fast = *std::move(fast);
      machine->fast->ignore_events();
    }
  }
  return machine;
}

Result<TrackerKind> tracker_kind(const std::string& name) {
  if (name == "auto") return TrackerKind::automatic;
  if (name == "async") return TrackerKind::async;
  if (name == "sync") return TrackerKind::sync;
  return Status(Code::invalid, "tracker: '" + name + "' is not allowed; allowed: auto, async, sync");
}

}  // namespace remusd::guest::qemu
