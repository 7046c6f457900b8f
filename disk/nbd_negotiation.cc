// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/nbd_negotiation.h"

#include <algorithm>
#include <optional>

namespace remusd::disk::nbd {
namespace {

using Bytes = std::vector<std::byte>;
using View = std::span<const std::byte>;

constexpr uint16_t kKnownFlags = kFixedNewstyle | kNoZeroes;

std::string_view text_of(View bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
View bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

void reply_head(Option option, OptionReply type, size_t bytes, Bytes* out) {
  OptionReplyHead head;
  head.option = static_cast<uint32_t>(option);
  head.type = static_cast<uint32_t>(type);
  head.bytes = static_cast<uint32_t>(bytes);
  put(head, out);
}

/// An answer with a text: an error's is for people.
void reply(Option option, OptionReply type, std::string_view text, Bytes* out) {
  reply_head(option, type, text.size(), out);
  const View bytes = bytes_of(text);
  out->insert(out->end(), bytes.begin(), bytes.end());
}
void ack(Option option, Bytes* out) {
  reply_head(option, OptionReply::ack, 0, out);
}

/// Takes an option's data apart; nullopt once it runs out.
class Fields {
 public:
  explicit Fields(View data) : rest_(data) {}

  template <typename T>
  std::optional<T> number() {
    if (rest_.size() < sizeof(T)) return std::nullopt;
    const T value = get<Big<T>>(rest_);
    rest_ = rest_.subspan(sizeof(T));
    return value;
  }
  std::optional<std::string_view> string() {
    const auto bytes = number<uint32_t>();
    if (!bytes || *bytes > kMaxStringBytes || *bytes > rest_.size()) return std::nullopt;
    const std::string_view text = text_of(rest_.first(*bytes));
    rest_ = rest_.subspan(*bytes);
    return text;
  }
  size_t left() const { return rest_.size(); }

 private:
  View rest_;
};

}  // namespace

void Negotiation::greet(Bytes* out) {
  Greeting greeting;
  greeting.flags = kKnownFlags;
  put(greeting, out);
}

size_t Negotiation::take(View in, Bytes* out) {
  size_t taken = 0;
  while (state_ == State::flags || state_ == State::options) {
    const View rest = in.subspan(taken);
    size_t step = 0;
    if (state_ == State::flags) {
      step = take_flags(rest);
    } else if (passing_over_ > 0) {
      step = std::min(passing_over_, rest.size());
      passing_over_ -= step;
    } else {
      step = take_option(rest, out);
    }
    if (step == 0) break;
    taken += step;
  }
  return taken;
}

size_t Negotiation::take_flags(View in) {
  if (in.size() < sizeof(uint32_t)) return 0;
  const uint32_t theirs = get<Big<uint32_t>>(in);
  fixed_ = (theirs & kFixedNewstyle) != 0;
  no_zeroes_ = (theirs & kNoZeroes) != 0;
  state_ = (theirs & ~uint32_t{kKnownFlags}) == 0 ? State::options : State::ended;
  return sizeof(uint32_t);
}

size_t Negotiation::take_option(View in, Bytes* out) {
  if (in.size() < sizeof(OptionHead)) return 0;
  const auto head = get<OptionHead>(in);
  const auto option = static_cast<Option>(uint32_t{head.option});
  const uint32_t bytes = head.bytes;
  // Without the fixed newstyle a client understands no answers to options, and may only choose an export.
  const bool understood = head.magic == kOptionMagic && (fixed_ || option == Option::export_name);
  if (!understood || bytes > kMaxPassedOver || ++options_ > kMaxOptions) {
    state_ = State::ended;
    return sizeof head;
  }
  if (bytes > kMaxOptionBytes) {
    // EXPORT_NAME cannot be answered with an error.
    if (option == Option::export_name)
      state_ = State::ended;
    else
      reply(option, OptionReply::too_big, "the option is too long", out);
    passing_over_ = bytes;
    return sizeof head;
  }
  if (in.size() < sizeof head + bytes) return 0;
  answer(option, in.subspan(sizeof head, bytes), out);
  return sizeof head + bytes;
}

void Negotiation::answer(Option option, View data, Bytes* out) {
  switch (option) {
    case Option::export_name:
      return export_name(text_of(data), out);
    case Option::abort:
      state_ = State::ended;
      return ack(option, out);
    case Option::list:
      return list(data, out);
    case Option::info:
    case Option::go:
      return info(option, data, out);
    case Option::structured_reply:
      if (!data.empty()) return reply(option, OptionReply::invalid, "the option has no data", out);
      structured_ = true;
      return ack(option, out);
    case Option::list_meta_context:
    case Option::set_meta_context:
      return meta_context(option, data, out);
    case Option::starttls:
      return reply(option, OptionReply::policy, "a unix socket needs no TLS", out);
  }
  reply(option, OptionReply::unsupported, "", out);
}

uint16_t Negotiation::flags() const {
  unsigned flags = kHasFlags | kSendFlush | kSendFua | kCanMultiConn | kSendCache;
  flags |= served_.read_only ? kReadOnly : kSendTrim | kSendWriteZeroes;
  if (structured_) flags |= kSendDf;
  return static_cast<uint16_t>(flags);
}

void Negotiation::enter(std::string_view name) {
  // Contexts hold for the export that they were chosen for, by the name that it was called then.
  if (name != context_of_) allocation_ = false;
  state_ = State::transmission;
}

void Negotiation::export_name(std::string_view name, Bytes* out) {
  if (!leads_here(name)) {
    state_ = State::ended;
    return;
  }
  put(Big<uint64_t>(served_.bytes), out);
  put(Big<uint16_t>(flags()), out);
  if (!no_zeroes_) out->resize(out->size() + kExportNameZeroes);
  enter(name);
}

void Negotiation::list(View data, Bytes* out) {
  if (!data.empty()) return reply(Option::list, OptionReply::invalid, "the option has no data", out);
  reply_head(Option::list, OptionReply::server, sizeof(uint32_t) + served_.name.size(), out);
  put(Big<uint32_t>(static_cast<uint32_t>(served_.name.size())), out);
  const View name = bytes_of(served_.name);
  out->insert(out->end(), name.begin(), name.end());
  ack(Option::list, out);
}

void Negotiation::info(Option option, View data, Bytes* out) {
  Fields fields(data);
  const auto name = fields.string();
  const auto asked = fields.number<uint16_t>();
  if (!name || !asked || fields.left() != *asked * sizeof(uint16_t))
    return reply(option, OptionReply::invalid, "the option's lengths contradict each other", out);
  if (!leads_here(*name)) return reply(option, OptionReply::unknown, "there is no such export here", out);
  bool wants_name = false, wants_block_size = false;
  while (const auto item = fields.number<uint16_t>()) {
    wants_name |= *item == static_cast<uint16_t>(Info::name);
    wants_block_size |= *item == static_cast<uint16_t>(Info::block_size);
  }
  InfoExport size;
  size.type = static_cast<uint16_t>(Info::export_);
  size.bytes = served_.bytes;
  size.flags = flags();
  reply_head(option, OptionReply::info, sizeof size, out);
  put(size, out);
  if (wants_name) {
    reply_head(option, OptionReply::info, sizeof(uint16_t) + served_.name.size(), out);
    put(Big<uint16_t>(static_cast<uint16_t>(Info::name)), out);
    const View text = bytes_of(served_.name);
    out->insert(out->end(), text.begin(), text.end());
  }
  if (wants_block_size) {
    InfoBlockSize blocks;
    blocks.type = static_cast<uint16_t>(Info::block_size);
    blocks.minimum = kMinBlock;
    blocks.preferred = kPreferredBlock;
    blocks.maximum = kMaxPayload;
    reply_head(option, OptionReply::info, sizeof blocks, out);
    put(blocks, out);
  }
  ack(option, out);
  if (option == Option::go) enter(*name);
}

void Negotiation::meta_context(Option option, View data, Bytes* out) {
  const bool setting = option == Option::set_meta_context;
  if (setting) allocation_ = false;  // Whatever comes of it, what was chosen before is not any more.
  if (!structured_)
    return reply(option, OptionReply::invalid, "structured replies must be agreed on first", out);
  Fields fields(data);
  const auto name = fields.string();
  const auto queries = fields.number<uint32_t>();
  if (!name || !queries) return reply(option, OptionReply::invalid, "the option is cut off", out);
  bool found = !setting && *queries == 0;
  for (uint32_t i = 0; i < *queries; ++i) {
    const auto query = fields.string();
    if (!query) return reply(option, OptionReply::invalid, "a query is cut off", out);
    found |= *query == kAllocationContext || (!setting && *query == "base:");
  }
  if (fields.left() != 0) return reply(option, OptionReply::invalid, "something follows the queries", out);
  if (!leads_here(*name)) return reply(option, OptionReply::unknown, "there is no such export here", out);
  if (found) {
    reply_head(option, OptionReply::meta_context, sizeof(uint32_t) + kAllocationContext.size(), out);
    put(Big<uint32_t>(setting ? kAllocationId : 0), out);
    const View text = bytes_of(kAllocationContext);
    out->insert(out->end(), text.begin(), text.end());
  }
  if (setting) {
    allocation_ = found;
    context_of_ = *name;
  }
  ack(option, out);
}

}  // namespace remusd::disk::nbd
