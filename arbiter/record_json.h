// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What implementations that keep records as text share: the record as one JSON object of exactly six fields,
// and which guest names they take. Pure.
#pragma once

#include <string>
#include <string_view>

#include "arbiter/arbiter.h"

namespace remusd::arbiter {

inline constexpr size_t kMaxRecordBytes = 4096;

/// `invalid` unless `vm` is 1 to 64 bytes without a slash and does not begin with a dot.
Status check_guest_name(const std::string& vm);

/// One line, without its end.
std::string encode_record(const Record& record);
/// `corrupt` when `text` is anything else than a record; `where` ("/dir/vm1.json") names it in the message.
Result<Record> decode_record(std::string_view text, const std::string& where);

}  // namespace remusd::arbiter
