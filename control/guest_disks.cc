// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/guest_disks.h"

#include <unistd.h>

#include <utility>

#include "control/driver_options.h"
#include "guest/guest.h"

namespace remusd::control {

std::string journals_dir(const Config& config) {
  return config.state_dir;
}

std::string held_path(const Config& config, const std::string& vm) {
  return journals_dir(config) + "/" + vm + ".held";
}

bool disks_are_behind(const Config& config, const std::string& vm) {
  return ::access(held_path(config, vm).c_str(), F_OK) == 0;
}

Result<std::shared_ptr<disk::Disks>> open_disks(const guest::Definition& definition, const Config& config,
                                                bool lives) {
  if (definition.disks.empty()) return std::shared_ptr<disk::Disks>();
  REMUSD_ASSIGN(const std::vector<guest::DiskEndpoint> endpoints,
                guest::disks_of(definition, driver_options(config)));
  std::vector<disk::DiskFile> files;
  for (size_t i = 0; i < endpoints.size(); ++i)
    files.push_back({endpoints[i].name, endpoints[i].path, endpoints[i].socket_path, 0,
                     endpoints[i].read_only, definition.disks[i].held()});
  disk::DisksOptions options;
  options.limit_bytes = static_cast<uint64_t>(config.disk_buffer_mib) << 20;
  options.journal_path = journals_dir(config) + "/" + definition.name + ".journal";
  options.map_path = journals_dir(config) + "/" + definition.name + ".map";
  options.held_path = held_path(config, definition.name);
  if (lives) (void)::unlink(options.journal_path.c_str());
  if (!lives) (void)::unlink(options.held_path.c_str());
  REMUSD_ASSIGN(std::unique_ptr<disk::Disks> disks, disk::Disks::open(files, options));
  return std::shared_ptr<disk::Disks>(std::move(disks));
}

guest::Definition with_sizes(guest::Definition definition, const disk::Disks* disks) {
  if (disks == nullptr) return definition;
  const std::vector<uint64_t> sizes = disks->sizes();
  for (size_t i = 0; i < sizes.size(); ++i) definition.disks[i].bytes = sizes[i];
  return definition;
}

namespace {

/// Its size is that at the start: QEMU does not let the disk of a guest that runs get larger behind NBD.
std::string note_of(const disk::LocalFile& file) {
  const auto now = file.bytes_now();
  if (!now.ok()) return now.status().message();
  if (*now == file.bytes()) return "";
  const std::string sizes = "disk " + file.path() + " has " + std::to_string(*now) +
                            " bytes by now, and the guest uses " + std::to_string(file.bytes());
  if (*now > file.bytes()) return sizes + ": it gets all of them when it is stopped and started";
  return sizes + ": what is missing is lost, and no flush succeeds any more";
}

}  // namespace

std::string disk_mode(bool held) {
  return std::string(held ? guest::DiskDefinition::kHold : guest::DiskDefinition::kReplicate);
}

void fill_disks(const disk::Disks& disks, DisksStatus* status) {
  status->modes.clear();
  for (const bool held : disks.held()) status->modes.push_back(disk_mode(held));
  status->bytes = 0;
  status->each.clear();
  for (size_t i = 0; i < disks.files().size(); ++i) {
    const disk::LocalFile& file = disks.files()[i];
    status->each.push_back({disks.names()[i], file.path(), file.bytes(), disks.counters(i)});
    status->bytes += file.bytes();
    if (std::string note = note_of(file); !note.empty()) status->notes.push_back(std::move(note));
  }
  if (const Status lost = disks.map_failure(); !lost.ok()) status->notes.push_back(lost.message());
  const disk::TapStats tap = disks.tap().stats();
  status->held_bytes = tap.held_bytes;
  status->limit_bytes = tap.limit_bytes;
  status->waits = tap.waits;
  status->written_bytes = tap.written_bytes;
  status->committed_bytes = tap.committed_bytes;
}

}  // namespace remusd::control
