// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/etcd_codec.h"

#include <openssl/evp.h>

#include <algorithm>
#include <boost/uuid/name_generator_sha1.hpp>
#include <boost/uuid/string_generator.hpp>
#include <boost/uuid/uuid_io.hpp>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace remusd::arbiter {
namespace {

using nlohmann::json;

constexpr size_t kMaxErrorBytes = 160;

std::string to_base64(std::string_view bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // EVP_EncodeBlock ends it with a zero.
  const int length =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(length));
  return text;
}

// EVP_DecodeBlock trims blanks and counts padding as zeros: only the canonical form is taken.
std::optional<std::string> from_base64(const std::string& text) {
  if (text.empty()) return std::string();
  if (text.size() % 4 != 0 || text.size() > kMaxEtcdAnswerBytes) return std::nullopt;
  std::string bytes(text.size() / 4 * 3, '\0');
  const int length =
      EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                      reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (length != static_cast<int>(bytes.size())) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  bytes.resize(bytes.size() - padding);
  if (to_base64(bytes) != text) return std::nullopt;
  return bytes;
}

Status corrupt(const std::string& what) {
  return {Code::corrupt, "not an answer of etcd's JSON gateway (" + what + ")"};
}

const json* field(const json& object, const char* name, json::value_t type) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found != object.end() && found->type() == type ? &*found : nullptr;
}

std::optional<uint64_t> number(const json& object, const char* name) {
  const json* text = field(object, name, json::value_t::string);
  if (text == nullptr) return std::nullopt;
  const auto& digits = text->get_ref<const std::string&>();
  uint64_t value = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return value;
}

std::optional<std::string> bytes_of(const json& object, const char* name) {
  const json* text = field(object, name, json::value_t::string);
  return text == nullptr ? std::nullopt : from_base64(text->get_ref<const std::string&>());
}

// A RangeResponse: no "kvs" means that there is no such key.
Result<std::optional<EtcdEntry>> entry_of(const json& range, const std::string& key) {
  if (!range.contains("kvs")) return std::optional<EtcdEntry>();
  const json* entries = field(range, "kvs", json::value_t::array);
  if (entries == nullptr || entries->size() > 1) return corrupt("kvs");
  if (entries->empty()) return std::optional<EtcdEntry>();
  const json& first = entries->front();
  if (bytes_of(first, "key") != key) return corrupt("another key");
  const auto revision = number(first, "mod_revision");
  if (!revision || *revision == 0 || *revision > std::numeric_limits<int64_t>::max()) {
    return corrupt("mod_revision");
  }
  EtcdEntry entry{*revision, {}};
  if (first.contains("value")) {
    auto value = bytes_of(first, "value");
    if (!value) return corrupt("value");
    entry.value = *std::move(value);
  }
  return std::optional<EtcdEntry>(std::move(entry));
}

Result<EtcdAnswer> begin(std::string_view body, json* object) {
  if (body.size() > kMaxEtcdAnswerBytes) return corrupt("too long");
  *object = json::parse(body, nullptr, /*allow_exceptions=*/false);
  const json* header = field(*object, "header", json::value_t::object);
  if (header == nullptr) return corrupt("header");
  const auto cluster = number(*header, "cluster_id");
  if (!cluster || *cluster == 0) return corrupt("cluster_id");
  EtcdAnswer answer;
  answer.cluster_id = *cluster;
  return answer;
}

}  // namespace

std::string etcd_owner_key(const std::string& vm) {
  static const boost::uuids::uuid guests = boost::uuids::string_generator()(kGuestNamespace);
  return "/remusd/v1/vm/" + to_string(boost::uuids::name_generator_sha1(guests)(vm)) + "/owner";
}

std::string etcd_range_request(const std::string& key) {
  return json{{"key", to_base64(key)}, {"serializable", false}}.dump();
}

std::string etcd_swap_request(const std::string& key, uint64_t mod_revision, const std::string& value) {
  const std::string name = to_base64(key);
  const json compare = {
      {"key", name}, {"target", "MOD"}, {"result", "EQUAL"}, {"mod_revision", std::to_string(mod_revision)}};
  const json put = {{"request_put", {{"key", name}, {"value", to_base64(value)}}}};
  const json range = {{"request_range", {{"key", name}, {"serializable", false}}}};
  const json request = {{"compare", json::array({compare})},
                        {"success", json::array({put})},
                        {"failure", json::array({range})}};
  return request.dump();
}

Result<EtcdAnswer> decode_etcd_range(std::string_view body, const std::string& key) {
  json object;
  REMUSD_ASSIGN(EtcdAnswer answer, begin(body, &object));
  if (object.contains("responses")) return corrupt("of another request");
  REMUSD_ASSIGN(answer.entry, entry_of(object, key));
  return answer;
}

Result<EtcdAnswer> decode_etcd_swap(std::string_view body, const std::string& key) {
  json object;
  REMUSD_ASSIGN(EtcdAnswer answer, begin(body, &object));
  if (const auto found = object.find("succeeded"); found != object.end()) {
    if (!found->is_boolean()) return corrupt("succeeded");
    answer.swapped = found->get<bool>();
  }
  // The branch that was taken says the same a second time: "lost" is never concluded from a missing word
  // alone.
  const json* responses = field(object, "responses", json::value_t::array);
  if (responses == nullptr || responses->size() != 1) return corrupt("responses");
  const char* branch = answer.swapped ? "response_put" : "response_range";
  const json* response = field(responses->front(), branch, json::value_t::object);
  if (response == nullptr) return corrupt(branch);
  if (!answer.swapped) {
    REMUSD_ASSIGN(answer.entry, entry_of(*response, key));
  }
  return answer;
}

std::string decode_etcd_error(std::string_view body) {
  const json object = json::parse(body.substr(0, kMaxEtcdAnswerBytes), nullptr, /*allow_exceptions=*/false);
  const json* error = field(object, "error", json::value_t::string);
  if (error == nullptr) return {};
  std::string text = error->get_ref<const std::string&>().substr(0, kMaxErrorBytes);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

}  // namespace remusd::arbiter
