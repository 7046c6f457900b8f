// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// etcd's v3 JSON gateway as far as the arbiter speaks it: requests for POST, and what answers say. Pure;
// answers come from the network and are trusted in nothing. The gateway writes 64-bit integers as JSON
// strings, bytes as base64, leaves out fields that are zero (so a transaction that lost has no "succeeded"),
// and ignores request fields that it does not know: a test asks a real etcd whether ours are spelled right.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ckpt/status.h"

namespace remusd::arbiter {

inline constexpr const char* kEtcdRange = "/v3/kv/range";
inline constexpr const char* kEtcdTxn = "/v3/kv/txn";
inline constexpr size_t kMaxEtcdAnswerBytes = 64u << 10;

/// The namespace of guest names: the UUID in a guest's key is of version 5 (RFC 4122, SHA-1) in it.
inline constexpr const char* kGuestNamespace = "ed534030-7237-4404-9e62-412fa26e1874";

/// "/remusd/v1/vm/<uuid>/owner".
std::string etcd_owner_key(const std::string& vm);

/// Reads one key, linearizably.
std::string etcd_range_request(const std::string& key);
/// Puts `value` if the key is still at `mod_revision` (0: if there is no such key); else reads the key. No
/// lease.
std::string etcd_swap_request(const std::string& key, uint64_t mod_revision, const std::string& value);

struct EtcdEntry {
  uint64_t mod_revision = 0;  // from 1
  std::string value;
};
struct EtcdAnswer {
  uint64_t cluster_id = 0;
  bool swapped = false;            // of a swap
  std::optional<EtcdEntry> entry;  // what the key holds; of a swap, only when it did not swap
};
/// `corrupt` unless the answer is whole, of the right kind, and about `key`.
Result<EtcdAnswer> decode_etcd_range(std::string_view body, const std::string& key);
Result<EtcdAnswer> decode_etcd_swap(std::string_view body, const std::string& key);
/// What a failed request's body says, on one line, of bounded length; "" when it says nothing.
std::string decode_etcd_error(std::string_view body);

}  // namespace remusd::arbiter
