// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/settler.h"

#include <utility>

#include "ckpt/thread.h"

namespace remusd::disk {
namespace {

Status write_kept(Medium& disk, const Change& run, const std::byte* data) {
  switch (run.kind) {
    case ChangeKind::write:
      return disk.write(run.offset, {data, run.bytes});
    case ChangeKind::zero:
      return disk.zero(run.offset, run.bytes);
    case ChangeKind::punch:
      break;
  }
  return disk.punch(run.offset, run.bytes);
}

}  // namespace

Settler::Settler(Tap& tap, SettlerOptions options) : tap_(tap), options_(std::move(options)) {
  thread_ = std::thread([this] {
    begin_thread("settle");
    run();
  });
}

Settler::~Settler() {
  tap_.end_settling();
  thread_.join();
}

void Settler::run() {
  Tap::Logs logs;
  for (;;) {
    switch (tap_.next_chore(&logs)) {
      case Hold::Chore::write:
        write(logs);
        break;
      case Hold::Chore::let_go:
        // Nothing of ours may leave this host's memory later, over what somebody else has written.
        flush();
        if (options_.unlock) options_.unlock();
        tap_.let_go();
        break;
      case Hold::Chore::take_back:
        take_back();
        break;
      case Hold::Chore::done:
        if (options_.drained) options_.drained();
        tap_.drained();
        break;
      case Hold::Chore::end:
        return;
      case Hold::Chore::wait:
        break;
    }
    logs.clear();  // They may be large.
  }
}

void Settler::take_back() {
  const Status locked = options_.lock ? options_.lock() : Status();
  if (locked.code() == Code::unsafe) return;  // Somebody else has it: the chore comes again.
  if (!locked.ok()) {                         // It will not be had by waiting.
    for (size_t disk = 0; disk < options_.disks.size(); ++disk)
      if (tap_.holds(disk)) break_disk(disk, locked);
  }
  tap_.taken_back();
}

void Settler::break_disk(size_t disk, const Status& why) {
  broken_ |= uint32_t{1} << disk;
  tap_.broke(disk, why);
}

void Settler::write(const Tap::Logs& logs) {
  for (const auto& log : logs)
    if (!write_log(log->log)) return;
  flush();
  tap_.settled(logs.size());
}

/// False: it may not be written any more.
bool Settler::write_log(const EpochLog& log) {
  const Status stopped = log.each(tap_.held_disks(), [&](const Change& run, const std::byte* data) {
    const uint32_t disk = uint32_t{1} << run.disk;
    if ((broken_ & disk) != 0) return Status();
    if (!tap_.may_write()) return Status(Code::unavailable, "the right to run is being decided");
    unflushed_ |= disk;
    if (const Status status = write_kept(*options_.disks[run.disk], run, data); !status.ok())
      break_disk(run.disk, status);
    return Status();
  });
  return stopped.ok();
}

void Settler::flush() {
  for (size_t disk = 0; disk < options_.disks.size(); ++disk) {
    const uint32_t bit = uint32_t{1} << disk;
    if ((unflushed_ & bit) == 0) continue;
    unflushed_ &= ~bit;
    const Status status = options_.disks[disk]->flush();
    if (!status.ok() && (broken_ & bit) == 0) break_disk(disk, status);
  }
}

}  // namespace remusd::disk
