// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Answers of etcd's JSON gateway. The first byte chooses: an answer to a range or to a swap as it may come,
// the body of a failed request; or an entry whose revision and value are put into a right answer, since
// nobody guesses base64.
#include <nlohmann/json.hpp>

#include "arbiter/etcd_codec.h"
#include "arbiter/record_json.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using arbiter::EtcdAnswer;
using arbiter::EtcdEntry;
using nlohmann::json;

enum Kind : uint8_t { kRange, kSwap, kError, kEntry, kKinds };

constexpr uint64_t kMaxRevision = INT64_MAX;
constexpr size_t kMostErrorBytes = 160;  // of a line that is shown

const std::string& our_key() {
  static const std::string key = arbiter::etcd_owner_key("g");
  return key;
}

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t three = 0;
    for (size_t i = 0; i < 3; ++i)
      three = three << 8 | (at + i < bytes.size() ? static_cast<uint8_t>(bytes[at + i]) : 0u);
    for (size_t i = 0; i < 4; ++i) text += i <= bytes.size() - at ? kDigits[three >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

/// A RangeResponse as the gateway writes it: without what is empty.
std::string range_text(uint64_t cluster_id, const std::optional<EtcdEntry>& entry) {
  std::string text = R"({"header":{"cluster_id":")" + std::to_string(cluster_id) + R"(","revision":"9"})";
  if (entry) {
    text += R"(,"kvs":[{"key":")" + base64(our_key()) + R"(","mod_revision":")" +
            std::to_string(entry->mod_revision) + '"';
    if (!entry->value.empty()) text += R"(,"value":")" + base64(entry->value) + '"';
    text += R"(}],"count":"1")";
  }
  return text + "}";
}

std::string swap_text(const EtcdAnswer& answer) {
  const std::string head = R"({"header":{"cluster_id":")" + std::to_string(answer.cluster_id) + R"("})";
  if (answer.swapped) return head + R"(,"succeeded":true,"responses":[{"response_put":{}}]})";
  return head + R"(,"responses":[{"response_range":)" + range_text(answer.cluster_id, answer.entry) + "}]}";
}

bool equal(const EtcdAnswer& left, const EtcdAnswer& right) {
  if (left.cluster_id != right.cluster_id || left.swapped != right.swapped ||
      left.entry.has_value() != right.entry.has_value()) {
    return false;
  }
  return !left.entry ||
         (left.entry->mod_revision == right.entry->mod_revision && left.entry->value == right.entry->value);
}

/// What decoded stays what it is when the gateway's own words say it.
void check_answer(const Result<EtcdAnswer>& again, const EtcdAnswer& answer) {
  REMUSD_ASSERT(answer.cluster_id > 0, "an answer is of some cluster");
  REMUSD_ASSERT(
      !answer.entry || (answer.entry->mod_revision > 0 && answer.entry->mod_revision <= kMaxRevision),
      "what is there has a revision of etcd's");
  REMUSD_ASSERT(again.ok() && equal(*again, answer), "an answer is read as it was written");
}

Result<EtcdAnswer> range_again(const EtcdAnswer& answer) {
  return arbiter::decode_etcd_range(range_text(answer.cluster_id, answer.entry), our_key());
}
Result<EtcdAnswer> swap_again(const EtcdAnswer& answer) {
  return arbiter::decode_etcd_swap(swap_text(answer), our_key());
}

/// The branch of the one response; null when the answer has not exactly one.
const json* branch(const json& object, const char* name) {
  if (!object.contains("responses") || !object["responses"].is_array() || object["responses"].size() != 1)
    return nullptr;
  const json& response = object["responses"][0];
  return response.is_object() && response.contains(name) && response[name].is_object() ? &response[name]
                                                                                       : nullptr;
}

void run_range(std::string_view body) {
  const auto answer = arbiter::decode_etcd_range(body, our_key());
  if (!answer.ok()) {
    require_reason(answer.status());
    REMUSD_ASSERT(answer.status().code() == Code::corrupt, "what is no answer is corrupt");
    return;
  }
  REMUSD_ASSERT(!answer->swapped, "reading wins nothing");
  REMUSD_ASSERT(!answer->entry || answer->entry->value.size() < body.size(),
                "a value is shorter than its answer");
  check_answer(range_again(*answer), *answer);
  REMUSD_ASSERT(!answer->entry || !arbiter::decode_etcd_range(body, our_key() + "x").ok(),
                "an entry is of one key");
  REMUSD_ASSERT(!arbiter::decode_etcd_swap(body, our_key()).ok(), "a range's answer is no swap's");
}

void run_swap(std::string_view body) {
  const auto answer = arbiter::decode_etcd_swap(body, our_key());
  if (!answer.ok()) {
    require_reason(answer.status());
    REMUSD_ASSERT(answer.status().code() == Code::corrupt, "what is no answer is corrupt");
    return;
  }
  // Said twice: by the word, and by the branch that was taken.
  const json said = json::parse(body);
  const bool won = said.contains("succeeded") && said["succeeded"] == json(true);
  REMUSD_ASSERT(answer->swapped == won, "only an answer that says so has won");
  REMUSD_ASSERT(branch(said, won ? "response_put" : "response_range") != nullptr, "the branch proves it");
  REMUSD_ASSERT(!answer->swapped || !answer->entry, "who has won is not told of another's record");
  check_answer(swap_again(*answer), *answer);
  REMUSD_ASSERT(!arbiter::decode_etcd_range(body, our_key()).ok(), "a swap's answer is no range's");
}

void run_error(std::string_view body) {
  const std::string line = arbiter::decode_etcd_error(body);
  REMUSD_ASSERT(line.size() <= kMostErrorBytes, "a line that is shown is short");
  for (const char c : line) REMUSD_ASSERT(c >= ' ' && c <= '~', "and can be shown");
  if (line.empty()) return;
  REMUSD_ASSERT(arbiter::decode_etcd_error(R"({"error":)" + json(line).dump() + "}") == line,
                "it is read as it was written");
}

void run_entry(Input input) {
  const bool swap = input.number() % 2 == 1;
  EtcdAnswer answer;
  answer.cluster_id = input.number<uint64_t>();
  answer.entry = EtcdEntry{input.number<uint64_t>(), std::string(text_of(input.rest()))};
  const auto again = swap ? swap_again(answer) : range_again(answer);
  if (answer.cluster_id == 0 || answer.entry->mod_revision - 1 >= kMaxRevision) {
    REMUSD_ASSERT(!again.ok(), "numbers of etcd's begin at 1");
    return;
  }
  check_answer(again, answer);
  // What we would write is what the answer shows then.
  if (!swap) return;
  const std::string request =
      arbiter::etcd_swap_request(our_key(), answer.entry->mod_revision, answer.entry->value);
  REMUSD_ASSERT(request.find('"' + base64(answer.entry->value) + '"') != std::string::npos,
                "a request says what is wanted");
}

void run(View bytes) {
  Input input(bytes);
  const uint8_t kind = input.number() % kKinds;
  if (kind == kEntry) return run_entry(input);
  const std::string_view text = text_of(input.rest());
  switch (kind) {
    case kRange:
      return run_range(text);
    case kSwap:
      return run_swap(text);
    default:
      return run_error(text);
  }
}

void seeds(Seeds* out) {
  const auto seed = [&](Kind kind, const std::string& text) { out->add_text(text, Bytes{std::byte{kind}}); };
  const std::string record = arbiter::encode_record(
      {.generation = 7, .owner = "a", .boot_id = "x", .epoch = 3, .nonce = "00ff", .peer = "b"});
  const EtcdEntry entry{7, record};
  constexpr uint64_t kCluster = 12101053776118486841u;
  seed(kRange, range_text(kCluster, {}));
  seed(kRange, range_text(kCluster, EtcdEntry{7, {}}));
  seed(kRange, range_text(kCluster, entry));
  seed(kSwap, swap_text({kCluster, true, {}}));
  seed(kSwap, swap_text({kCluster, false, {}}));
  seed(kSwap, swap_text({kCluster, false, entry}));
  // As a real one says it, with fields that we do not read.
  seed(kSwap, R"({"header":{"cluster_id":"12101053776118486841","member_id":"9372538179322589801",)"
              R"("revision":"9","raft_term":"4"},"succeeded":true,)"
              R"("responses":[{"response_put":{"header":{"revision":"9"}}}]})");
  seed(kError, R"({"error":"etcdserver: no leader","code":14,"message":"etcdserver: no leader"})");
  seed(kError, "Not Found");
  for (const uint64_t revision : {uint64_t{7}, kMaxRevision, kMaxRevision + 1}) {
    Bytes input{std::byte{kEntry}, static_cast<std::byte>(revision % 2)};
    put_number(kCluster, &input);
    put_number(revision, &input);
    out->add_text(record, std::move(input));
  }
  out->words = {"\"header\":",
                "\"cluster_id\":",
                "\"kvs\":",
                "\"key\":",
                "\"mod_revision\":",
                "\"value\":",
                "\"succeeded\":true",
                "\"responses\":[",
                "\"response_put\":{",
                "\"response_range\":{",
                "\"error\":",
                "\"9223372036854775808\"",
                "eHl6",
                "eA==",
                "eHk=",

                "null",
                "\\u0000",
                base64(our_key())};
}

REMUSD_FUZZ_TARGET(etcd, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
