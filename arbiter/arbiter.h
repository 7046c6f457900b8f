// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The right to run: one small record per guest, changed by compare-and-swap only.
//
// Contract of every implementation: read() is linearizable. compare_and_swap() installs `desired` only if the
// record's generation is `expected` (0: no record), durably before it says won. `lost` means that it was not
// installed and never will be by this call; `unknown` means neither is known (timeout, I/O error): the caller
// stays frozen, reads again and looks for its own nonce. A call returns by `deadline`. Calls block; they are
// made on the arbiter thread, never on a thread that carries checkpoints. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::arbiter {

struct Record {
  uint64_t generation = 0;  // rises by one with each change
  std::string owner;        // node that may run the guest
  std::string boot_id;      // of the owner's host
  uint64_t epoch = 0;       // newest epoch the owner knew committed; for people
  std::string nonce;        // random, names this very request
  std::string peer;         // node that may hold a committed replica of this generation; empty: none
  bool operator==(const Record&) const = default;
};

enum class Verdict { won, lost, unknown };
std::string_view to_string(Verdict verdict);
struct Answer {
  Verdict verdict = Verdict::unknown;
  std::optional<Record> current;  // the record as last seen, when known
  Status why;                     // for unknown: the failure
};

class Arbiter {
 public:
  virtual ~Arbiter() = default;
  /// The record, or nullopt when there is none yet.
  virtual Result<std::optional<Record>> read(const std::string& vm, Time deadline) = 0;
  virtual Answer compare_and_swap(const std::string& vm, uint64_t expected_generation, const Record& desired,
                                  Time deadline) = 0;
  virtual std::string describe() const = 0;  // "file /var/lib/remusd/arbiter"
};

/// Records as JSON files `<vm>.json` in `directory`, changed under an flock()ed `<vm>.lock`, fsync()ed and
/// renamed into place. The directory may be on shared storage that honours POSIX locks.
Result<std::unique_ptr<Arbiter>> open_file_arbiter(const std::string& directory);

/// Records as values of etcd keys, one for each guest (arbiter/etcd_codec.h), over etcd's v3 JSON gateway.
struct EtcdOptions {
  std::vector<std::string> endpoints;  // "https://10.0.0.1:2379"; members of one cluster, 1 to 16
  std::string ca;                      // PEM files for https; empty: the system's authorities
  std::string cert, key;               // ours, where etcd asks for one; both or neither
};
/// Checks the options and reads the files, but asks nobody: an etcd that is down stops no daemon from
/// starting. Changed files are read again when they are next needed. The endpoint that answered last is asked
/// first; a name is looked up beforehand and now and then, never while somebody waits for an answer that
/// needs none.
Result<std::unique_ptr<Arbiter>> open_etcd_arbiter(const EtcdOptions& options);

/// A random 128-bit nonce in hex, and this host's boot id.
std::string make_nonce();
std::string this_boot_id();

/// Settles one request for the right to run, unknown answers included: swaps, and when the answer is unknown
/// reads until the record shows our nonce (won), another generation (lost), or `give_up` passes (unknown).
Answer acquire(Arbiter& arbiter, const std::string& vm, uint64_t expected_generation, const Record& desired,
               Time give_up);

/// Wins the next generation for `node`, which runs `vm` or is about to; `peer` as in Record. `unsafe` when
/// another node's record stands or another request won, `unavailable` when the arbiter does not say.
Result<uint64_t> win_next_generation(Arbiter& arbiter, const std::string& vm, const std::string& node,
                                     const std::string& peer, Time give_up);

}  // namespace remusd::arbiter
