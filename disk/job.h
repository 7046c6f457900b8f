// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "disk/buffer_pool.h"
#include "disk/change_order.h"
#include "disk/kept_run.h"
#include "disk/nbd_request.h"
#include "disk/operation.h"

namespace remusd::disk {

class Connection;
class Drive;

/// One request on its way from the socket to the disk and back.
struct Job final : Operation, ChangeOrder::Entry {
  /// How a change is made; each that the file system cannot do falls to the next.
  enum class Way : uint8_t { write, punch, zero, write_zeros };

  void completed(int result) override;

  Connection* connection = nullptr;
  Drive* drive = nullptr;
  nbd::Request request;
  Buffer content;            // of a write, or for the answer
  uint32_t done = 0;         // bytes of it
  uint32_t reply_bytes = 0;  // of the content, that follow the head
  bool in_pipe = false;      // they are in the connection's pipe instead
  Way way = Way::write;
  uint64_t sequence = 0;          // of a change that the observer was told of
  std::unique_ptr<KeptRun> kept;  // of a read or a block status, to be laid over what the file has
  nbd::ReplyHead head;
};

/// What one disk's requests came to. Written by the server's thread alone.
struct DiskTally {
  std::atomic<uint64_t> reads = 0, read_bytes = 0, writes = 0, written_bytes = 0, zeroes = 0,
                        zeroed_bytes = 0, flushes = 0, errors = 0, in_flight = 0, held = 0, connections = 0;
};

}  // namespace remusd::disk
