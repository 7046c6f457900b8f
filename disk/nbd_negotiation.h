// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The handshake of one NBD connection, fixed newstyle. Pure: bytes in, bytes out.
//
//   flags --client's flags--> options --EXPORT_NAME or GO--> transmission
//   flags, options --ABORT, or what cannot be understood or is too much--> ended
//
// Always holds: what was agreed on is read only in `transmission`; nothing is kept of an option but what it
// turned on, so that a connection costs no more however long it haggles, which kMaxOptions ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "disk/nbd_protocol.h"

namespace remusd::disk::nbd {

inline constexpr size_t kMaxOptions = 1024;
/// The data of an option; one that claims more is refused and passed over, or above kMaxPassedOver ends it.
inline constexpr size_t kMaxOptionBytes = 16 << 10, kMaxPassedOver = 256 << 10;
inline constexpr std::string_view kAllocationContext = "base:allocation";
inline constexpr uint32_t kAllocationId = 1;

/// The one export of a connection; the empty name leads to it, too.
struct Export {
  std::string name;
  uint64_t bytes = 0;
  bool read_only = false;
};

class Negotiation {
 public:
  enum class State { flags, options, transmission, ended };

  explicit Negotiation(Export served) : served_(std::move(served)) {}

  /// What the server says first.
  static void greet(std::vector<std::byte>* out);

  /// Takes whole steps from the front of `in` until it runs out of them or the state is one of the last two,
  /// and appends what there is to say. Returns how much was taken; the caller brings the rest again with
  /// more behind it. A caller that can hold kMaxOptionBytes and a head is always understood.
  size_t take(std::span<const std::byte> in, std::vector<std::byte>* out);

  State state() const { return state_; }
  /// What was agreed on.
  bool structured() const { return structured_; }
  bool allocation() const { return allocation_; }

 private:
  size_t take_flags(std::span<const std::byte> in);
  size_t take_option(std::span<const std::byte> in, std::vector<std::byte>* out);
  void answer(Option option, std::span<const std::byte> data, std::vector<std::byte>* out);
  void export_name(std::string_view name, std::vector<std::byte>* out);
  void list(std::span<const std::byte> data, std::vector<std::byte>* out);
  void info(Option option, std::span<const std::byte> data, std::vector<std::byte>* out);
  void meta_context(Option option, std::span<const std::byte> data, std::vector<std::byte>* out);
  bool leads_here(std::string_view name) const { return name.empty() || name == served_.name; }
  uint16_t flags() const;
  void enter(std::string_view name);

  Export served_;
  State state_ = State::flags;
  bool fixed_ = false, no_zeroes_ = false, structured_ = false, allocation_ = false;
  std::string context_of_;  // the name that contexts were chosen for
  size_t options_ = 0, passing_over_ = 0;
};

}  // namespace remusd::disk::nbd
