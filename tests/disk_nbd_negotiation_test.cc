// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "disk/nbd_negotiation.h"
#include "tests/disk_nbd_client.h"

namespace remusd::disk::nbd {
namespace {

struct Reply {
  Option option;
  OptionReply type;
  Bytes data;
};

/// A client that haggles with the pure part.
class Haggle : public testing::Test {
 protected:
  void flags(uint32_t flags) { put(Big<uint32_t>(flags), &said_); }
  void say(Option option, const Bytes& data = {}) { NbdClient::option(option, data, &said_); }
  /// All that was said, in pieces of so many bytes.
  void hear(size_t piece = SIZE_MAX) {
    Bytes waiting;
    for (size_t at = 0; at < said_.size();) {
      const size_t now = std::min(piece, said_.size() - at);
      waiting.insert(waiting.end(), said_.begin() + static_cast<ptrdiff_t>(at),
                     said_.begin() + static_cast<ptrdiff_t>(at + now));
      at += now;
      const size_t taken = server_.take(waiting, &answers_);
      waiting.erase(waiting.begin(), waiting.begin() + static_cast<ptrdiff_t>(taken));
    }
    said_ = waiting;
  }
  std::vector<Reply> replies() {
    std::vector<Reply> all;
    std::span<const std::byte> rest(answers_);
    while (rest.size() >= sizeof(OptionReplyHead)) {
      const auto head = get<OptionReplyHead>(rest);
      EXPECT_EQ(head.magic, kOptionReplyMagic);
      const auto data = rest.subspan(sizeof head, head.bytes);
      all.push_back({static_cast<Option>(uint32_t{head.option}),
                     static_cast<OptionReply>(uint32_t{head.type}), Bytes(data.begin(), data.end())});
      rest = rest.subspan(sizeof head + head.bytes);
    }
    EXPECT_TRUE(rest.empty());
    answers_.clear();
    return all;
  }
  std::vector<OptionReply> types() {
    std::vector<OptionReply> all;
    for (const Reply& reply : replies()) all.push_back(reply.type);
    return all;
  }
  /// The data of INFO and GO.
  static Bytes info(std::string_view name, std::initializer_list<Info> wanted = {}) {
    Bytes data = NbdClient::text(name);
    put(Big<uint16_t>(static_cast<uint16_t>(wanted.size())), &data);
    for (const Info one : wanted) put(Big<uint16_t>(static_cast<uint16_t>(one)), &data);
    return data;
  }
  static Bytes contexts(std::string_view name, std::initializer_list<std::string_view> queries) {
    Bytes data = NbdClient::text(name);
    put(Big<uint32_t>(static_cast<uint32_t>(queries.size())), &data);
    for (const auto query : queries) {
      const Bytes text = NbdClient::text(query);
      data.insert(data.end(), text.begin(), text.end());
    }
    return data;
  }

  using State = Negotiation::State;
  using Types = std::vector<OptionReply>;
  Negotiation server_{Export{"disk0", 1 << 20, false}};
  Bytes said_, answers_;
};

TEST_F(Haggle, GreetsFixedNewstyle) {
  Negotiation::greet(&answers_);
  const auto greeting = get<Greeting>(answers_);
  EXPECT_EQ(greeting.magic, kGreetingMagic);
  EXPECT_EQ(greeting.flags, kFixedNewstyle | kNoZeroes);
  answers_.clear();
}

TEST_F(Haggle, GoTellsTheExportAndEnters) {
  for (const size_t piece : {SIZE_MAX, size_t{1}, size_t{7}}) {
    server_ = Negotiation(Export{"disk0", 1 << 20, false});
    flags(kFixedNewstyle | kNoZeroes);
    say(Option::go, info("disk0", {Info::block_size, Info::name, Info::description}));
    hear(piece);
    EXPECT_EQ(server_.state(), State::transmission);
    const auto all = replies();
    ASSERT_EQ(all.size(), 4u);
    const auto size = get<InfoExport>(all[0].data);
    EXPECT_EQ(size.bytes, 1u << 20);
    EXPECT_EQ(size.flags,
              kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes | kCanMultiConn | kSendCache);
    EXPECT_EQ(all[1].data.size(), 2u + 5u);
    const auto blocks = get<InfoBlockSize>(all[2].data);
    EXPECT_EQ(blocks.minimum, 1u);
    EXPECT_EQ(blocks.preferred, 4096u);
    EXPECT_EQ(blocks.maximum, 32u << 20);
    EXPECT_EQ(all[3].type, OptionReply::ack);
  }
}

TEST_F(Haggle, InfoDoesNotEnter) {
  flags(kFixedNewstyle);
  say(Option::info, info(""));
  hear();
  EXPECT_EQ(types(), (Types{OptionReply::info, OptionReply::ack}));
  EXPECT_EQ(server_.state(), State::options);
}

TEST_F(Haggle, RequestsBehindGoAreNotTaken) {
  flags(kFixedNewstyle);
  say(Option::go, info(""));
  said_.resize(said_.size() + sizeof(RequestHead));
  hear();
  EXPECT_EQ(said_.size(), sizeof(RequestHead));
}

TEST_F(Haggle, ExportNameEntersWithOrWithoutZeroes) {
  flags(kFixedNewstyle | kNoZeroes);
  NbdClient::option(Option::export_name, {}, &said_);
  hear();
  EXPECT_EQ(server_.state(), State::transmission);
  EXPECT_EQ(answers_.size(), 10u);
  EXPECT_EQ(get<Big<uint64_t>>(answers_), 1u << 20);

  server_ = Negotiation(Export{"disk0", 1 << 20, true});
  answers_.clear();
  flags(0);  // a client that knows the newstyle only
  say(Option::export_name);
  hear();
  EXPECT_EQ(answers_.size(), 10u + kExportNameZeroes);
  EXPECT_NE(get<Big<uint16_t>>(std::span(answers_).subspan(8)) & kReadOnly, 0);
  answers_.clear();
}

TEST_F(Haggle, OldClientsHaveNoOtherOption) {
  flags(0);
  say(Option::list);
  hear();
  EXPECT_EQ(server_.state(), State::ended);
  EXPECT_TRUE(answers_.empty());
}

TEST_F(Haggle, UnknownExportsAreRefused) {
  flags(kFixedNewstyle);
  say(Option::go, info("disk1"));
  hear();
  EXPECT_EQ(types(), Types{OptionReply::unknown});
  EXPECT_EQ(server_.state(), State::options);
  const Bytes name{std::byte{'x'}};
  say(Option::export_name, name);
  hear();
  EXPECT_EQ(server_.state(), State::ended);  // There is no other way to say so.
}

TEST_F(Haggle, ListNamesTheOneExport) {
  flags(kFixedNewstyle);
  say(Option::list);
  hear();
  const auto all = replies();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].type, OptionReply::server);
  EXPECT_EQ(all[0].data, NbdClient::text("disk0"));
}

TEST_F(Haggle, AbortIsAnswered) {
  flags(kFixedNewstyle);
  say(Option::abort);
  hear();
  EXPECT_EQ(types(), Types{OptionReply::ack});
  EXPECT_EQ(server_.state(), State::ended);
}

TEST_F(Haggle, WhatIsNotSpokenIsRefusedAndHagglingGoesOn) {
  flags(kFixedNewstyle);
  say(Option::starttls);
  say(static_cast<Option>(11));
  say(static_cast<Option>(0xffffffff), Bytes(100));
  say(Option::structured_reply, Bytes(1));
  say(Option::go, info(""));
  hear();
  EXPECT_EQ(types(), (Types{OptionReply::policy, OptionReply::unsupported, OptionReply::unsupported,
                            OptionReply::invalid, OptionReply::info, OptionReply::ack}));
  EXPECT_FALSE(server_.structured());
}

TEST_F(Haggle, TooLongIsPassedOver) {
  flags(kFixedNewstyle);
  say(Option::go, Bytes(kMaxOptionBytes + 1));
  say(Option::list);
  hear(1000);
  EXPECT_EQ(types(), (Types{OptionReply::too_big, OptionReply::server, OptionReply::ack}));
  OptionHead head;
  head.bytes = UINT32_MAX;
  put(head, &said_);
  hear();
  EXPECT_EQ(server_.state(), State::ended);
}

TEST_F(Haggle, EndsWhatCannotBeUnderstood) {
  flags(kFixedNewstyle | 1u << 5);
  hear();
  EXPECT_EQ(server_.state(), State::ended);
  server_ = Negotiation(Export{});
  said_.clear();
  flags(kFixedNewstyle);
  said_.resize(said_.size() + sizeof(OptionHead));
  hear();
  EXPECT_EQ(server_.state(), State::ended);
}

TEST_F(Haggle, HagglingEnds) {
  flags(kFixedNewstyle);
  for (size_t i = 0; i < kMaxOptions; ++i) say(static_cast<Option>(99));
  hear();
  EXPECT_EQ(server_.state(), State::options);
  say(Option::go, info(""));
  hear();
  EXPECT_EQ(server_.state(), State::ended);
  answers_.clear();
}

TEST_F(Haggle, ContradictoryLengthsAreInvalid) {
  flags(kFixedNewstyle);
  Bytes odd = info("", {Info::name});
  odd.pop_back();
  say(Option::go, odd);
  say(Option::go, Bytes(3));
  Bytes long_name;
  put(Big<uint32_t>(UINT32_MAX), &long_name);
  put(Big<uint16_t>(0), &long_name);
  say(Option::info, long_name);
  hear();
  EXPECT_EQ(types(), (Types{OptionReply::invalid, OptionReply::invalid, OptionReply::invalid}));
}

TEST_F(Haggle, AllocationIsAgreedOn) {
  flags(kFixedNewstyle);
  say(Option::set_meta_context, contexts("", {kAllocationContext}));  // too early
  say(Option::structured_reply);
  say(Option::list_meta_context, contexts("", {}));
  say(Option::list_meta_context, contexts("disk0", {"qemu:", "base:"}));
  say(Option::list_meta_context, contexts("", {"qemu:"}));
  say(Option::set_meta_context, contexts("", {"qemu:dirty-bitmap:b", kAllocationContext}));
  say(Option::go, info(""));
  hear();
  const auto meta = OptionReply::meta_context, ack = OptionReply::ack;
  EXPECT_EQ(types(),
            (Types{OptionReply::invalid, ack, meta, ack, meta, ack, ack, meta, ack, OptionReply::info, ack}));
  EXPECT_TRUE(server_.structured());
  EXPECT_TRUE(server_.allocation());
}

TEST_F(Haggle, ContextsAreThoseThatWereChosenLastForThisName) {
  for (const bool again : {false, true}) {
    server_ = Negotiation(Export{"disk0", 1 << 20, false});
    flags(kFixedNewstyle);
    say(Option::structured_reply);
    say(Option::set_meta_context, contexts("disk0", {kAllocationContext}));
    if (again) say(Option::set_meta_context, contexts("disk0", {}));
    say(Option::go, info(again ? "disk0" : ""));
    hear();
    EXPECT_EQ(server_.state(), State::transmission);
    EXPECT_FALSE(server_.allocation());
  }
  answers_.clear();
}

TEST_F(Haggle, BrokenQueriesAreInvalid) {
  flags(kFixedNewstyle);
  say(Option::structured_reply);
  Bytes cut = contexts("", {"base:allocation"});
  cut.pop_back();
  say(Option::set_meta_context, cut);
  Bytes more = contexts("", {"base:allocation"});
  more.push_back({});
  say(Option::list_meta_context, more);
  say(Option::set_meta_context, contexts("other", {"base:allocation"}));
  hear();
  EXPECT_EQ(types(),
            (Types{OptionReply::ack, OptionReply::invalid, OptionReply::invalid, OptionReply::unknown}));
}

}  // namespace
}  // namespace remusd::disk::nbd
