// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The arbiter's record as text, which lies in a file or in etcd.
#include "arbiter/record_json.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

void run(View bytes) {
  const std::string_view text = text_of(bytes);
  const auto record = arbiter::decode_record(text, "r");
  if (!record.ok()) {
    require_reason(record.status());
    REMUSD_ASSERT(record.status().code() == Code::corrupt, "what is no record is damaged");
    return;
  }
  REMUSD_ASSERT(text.size() <= arbiter::kMaxRecordBytes && record->generation > 0,
                "a record has a generation, and bounds");
  const std::string line = arbiter::encode_record(*record);
  REMUSD_ASSERT(line.find('\n') == std::string::npos, "a record is one line");
  const auto again = arbiter::decode_record(line, "r");
  REMUSD_ASSERT(line.size() > arbiter::kMaxRecordBytes || (again.ok() && *again == *record),
                "a record is read as it was written");
}

void seeds(Seeds* out) {
  const arbiter::Record record{
      .generation = 7, .owner = "a", .boot_id = "x", .epoch = 3, .nonce = "00ff", .peer = "b"};
  out->add_text(arbiter::encode_record(record));
  out->add_text(R"({"boot_id":"","epoch":0,"generation":1,"nonce":"00ff","owner":"","peer":"\u00e9"})"
                "\n");
  out->words = {"\"generation\"",       "\"owner\"", "\"epoch\"", "\"nonce\"", "\"peer\"", "\"boot_id\"",
                "18446744073709551615", "1e3",       "null",      "\\u0000"};
}

REMUSD_FUZZ_TARGET(record, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
