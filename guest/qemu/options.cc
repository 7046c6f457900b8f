// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/options.h"

#include <nlohmann/json.hpp>

namespace remusd::guest::qemu {
namespace {

using nlohmann::json;
using Pairs = std::vector<std::pair<std::string, std::string>>;

void flatten(const json& value, const std::string& key, int depth, Pairs* pairs) {
  constexpr int kMaxDepth = 8;
  if (value.is_structured() && depth < kMaxDepth) {
    for (const auto& [name, member] : value.items()) {
      flatten(member, key.empty() ? name : key + "." + name, depth + 1, pairs);
    }
  } else if (value.is_string()) {
    pairs->emplace_back(key, value.get<std::string>());
  } else if (value.is_boolean()) {
    pairs->emplace_back(key, value.get<bool>() ? "on" : "off");
  } else {
    pairs->emplace_back(key, value.dump());
  }
}

}  // namespace

Result<OptionList> OptionList::parse(std::string_view text, std::string_view first) {
  OptionList list;
  if (text.starts_with('{')) {
    const json object = json::parse(text, nullptr, false);
    if (!object.is_object()) {
      return Status(Code::invalid, "QEMU option '" + std::string(text.substr(0, 80)) + "' is no JSON object");
    }
    flatten(object, "", 0, &list.pairs_);
    return list;
  }
  std::string part;
  const auto add = [&] {
    const size_t equals = part.find('=');
    if (equals != std::string::npos) {
      list.pairs_.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    } else if (list.pairs_.empty() && !first.empty()) {
      list.pairs_.emplace_back(first, part);
    } else if (!part.empty()) {
      list.pairs_.emplace_back(part, "on");
    }
    part.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      part += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      part += text[i++];
    } else {
      add();
    }
  }
  add();
  return list;
}

std::string OptionList::get(std::string_view key) const {
  for (auto pair = pairs_.rbegin(); pair != pairs_.rend(); ++pair) {
    if (pair->first == key) return pair->second;
  }
  return {};
}

void OptionList::set(std::string_view key, std::string value) {
  remove(key);
  pairs_.emplace_back(key, std::move(value));
}

void OptionList::remove(std::string_view key) {
  std::erase_if(pairs_, [key](const auto& pair) { return pair.first == key; });
}

std::string OptionList::text(std::string_view first) const {
  std::string out = escape_commas(get(first));
  for (const auto& [key, value] : pairs_) {
    if (key == first) continue;
    if (!out.empty()) out += ',';
    out += key + "=" + escape_commas(value);
  }
  return out;
}

std::string escape_commas(std::string_view value) {
  std::string out;
  for (const char c : value) out.append(c == ',' ? 2 : 1, c);
  return out;
}

}  // namespace remusd::guest::qemu
