// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The independent decoder, run on streams that our encoders wrote and on damaged copies of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>

#include "ckpt/blob_delta.h"
#include "ckpt/frame.h"
#include "ckpt/page_codec.h"
#include "ckpt/records.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int exit_code = -1;
  std::string output;  // both streams
};

Outcome verify(const Bytes& stream, const std::string& flags = "") {
  const std::string path = ::testing::TempDir() + "stream_" + std::to_string(::getpid());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(stream.data()), static_cast<std::streamsize>(stream.size()));
  const std::string command =
      "/usr/bin/python3 " REMUSD_SOURCE_DIR "/tests/verify_stream.py " + flags + " " + path + " 2>&1";
  Outcome outcome;
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return outcome;
  char buffer[4096];
  while (const size_t size = ::fread(buffer, 1, sizeof buffer, pipe)) outcome.output.append(buffer, size);
  const int status = ::pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  ::unlink(path.c_str());
  return outcome;
}

/// Writes a session as the primary would; hooks let a test do one thing wrong.
struct Session {
  explicit Session(bool with_deltas = false) : deltas(with_deltas), memory(kMemoryPages * kPageSize) {
    writer.set_generation(5);
  }

  void add(FrameType type, uint64_t epoch, View body) {
    const uint64_t checksum = writer.append(type, epoch, body, &stream);
    if (type == FrameType::pages || type == FrameType::device || type == FrameType::base)
      digest.add(checksum);
  }
  template <typename Record>
  void add_record(FrameType type, uint64_t epoch, const Record& record) {
    Bytes body;
    encode(record, &body);
    add(type, epoch, body);
  }
  void add_text(FrameType type, std::string_view text) { add(type, 0, std::as_bytes(std::span(text))); }
  void add_blob(FrameType type, uint64_t epoch, size_t size) {
    Bytes blob(size);
    for (size_t i = 0; i < size; ++i) blob[i] = static_cast<std::byte>(i % 2 == 0 ? i / 300 : i * i * 31 / 7);
    for (size_t i = 0; deltas && i < size; i += 3000) blob[i] = static_cast<std::byte>(epoch);
    uint64_t offset = 0;
    do {
      Bytes body;
      ASSERT_TRUE((deltas && type == FrameType::device ? device.append_part(blob, offset, &body, &offset)
                                                       : append_blob_part(blob, offset, &body, &offset))
                      .ok());
      add(type, epoch, body);
    } while (offset < size);
    (type == FrameType::device ? commit.device_bytes : base_bytes) = size;
  }
  void add_pages(uint64_t epoch, uint64_t count) {
    std::vector<uint64_t> numbers;
    Bytes data(count * kPageSize);
    for (uint64_t i = 0; i < count; ++i) {
      numbers.push_back(i * 2);
      for (size_t at = 0; i % 3 != 0 && at < kPageSize; ++at)
        data[i * kPageSize + at] =
            static_cast<std::byte>(i % 3 == 1 ? at / 99 : (at * at * 2654435761u + i) >> 13);
      for (size_t at = 0; deltas && i % 3 != 0 && i % 5 != 0 && at < (i % 4) * 20; ++at)
        data[i * kPageSize + at * 64] ^= static_cast<std::byte>(epoch);
      std::copy_n(data.begin() + static_cast<ptrdiff_t>(i * kPageSize), kPageSize,
                  memory.begin() + static_cast<ptrdiff_t>(i * 2 * kPageSize));
    }
    Bytes body;
    const PageCounts frame = encode_pages(numbers, data, &body, deltas ? &shadow : nullptr);
    if (!body.empty()) add(FrameType::pages, epoch, body);
    counts.zero += frame.zero;
    counts.raw += frame.raw;
    counts.lz4 += frame.lz4;
    counts.delta += frame.delta;
    counts.delta_lz4 += frame.delta_lz4;
    counts.same += frame.same;
    commit.pages += frame.total();
  }
  /// As the decoder prints it.
  std::string image() const {
    std::string pages;
    for (uint64_t page = 0; page < kMemoryPages; ++page) {
      const std::string content(reinterpret_cast<const char*>(memory.data()) + page * kPageSize, kPageSize);
      if (content.find_first_not_of('\0') == std::string::npos) continue;
      pages.append(reinterpret_cast<const char*>(&page), sizeof page);
      pages += content;
    }
    char text[17];
    std::snprintf(text, sizeof text, "%016llx",
                  static_cast<unsigned long long>(XXH3_64bits(pages.data(), pages.size())));
    return text;
  }
  void add_commit(uint64_t epoch, const std::function<void(Commit*)>& change = {}) {
    commit.frames = digest.frames();
    commit.digest = digest.value();
    commit.raw_bytes = commit.pages * kPageSize + commit.device_bytes + base_bytes;
    if (change) change(&commit);
    add_record(FrameType::commit, epoch, commit);
    commit = {};
    base_bytes = 0;
    digest.reset();
  }
  void add_hello() {
    Hello hello;
    hello.generation = 5;
    hello.node = "a";
    hello.vm = "vm1";
    hello.features = (deltas ? kFeatureDelta : 0) | (holds ? kFeatureHold : 0);
    add_record(FrameType::hello, 0, hello);
  }
  void add_handshake() {
    add_hello();
    add_text(FrameType::definition, R"({"name":"vm1"})");
    const std::string data(1000, 'k');
    add_record(FrameType::file, 0, FilePart{"00ff", 2000, 0, std::as_bytes(std::span(data))});
    add_record(FrameType::heartbeat, 0, Heartbeat{1, 0});
    add_record(FrameType::file, 0, FilePart{"00ff", 2000, 1000, std::as_bytes(std::span(data))});
    add_text(FrameType::facts, R"({"driver":"sim"})");
  }
  void add_epoch(uint64_t epoch) {
    add_pages(epoch, 200);
    add_record(FrameType::heartbeat, 0, Heartbeat{2, 1});
    add(static_cast<FrameType>(0x8abc), 0, {});  // optional, from the future
    add_pages(epoch, 7);
    if (epoch == 1) add_blob(FrameType::base, epoch, 1'500'000);
    add_blob(FrameType::device, epoch, 59'000);
    add_commit(epoch);
  }
  void add_goodbye() { add_record(FrameType::goodbye, 0, Refuse{Code::ok, "done\nfor today"}); }

  static constexpr uint64_t kMemoryPages = 400;
  const bool deltas;
  bool holds = false;  // disks
  Shadow shadow = *Shadow::make(kMemoryPages, kMemoryPages* kPageSize);
  BlobHistory device;
  Bytes memory;
  FrameWriter writer;
  EpochDigest digest;
  Commit commit;
  uint64_t base_bytes = 0;
  PageCounts counts;
  Bytes stream;
};

Session whole_session(bool deltas = false) {
  Session session(deltas);
  session.add_handshake();
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) session.add_epoch(epoch);
  session.add_goodbye();
  return session;
}

TEST(VerifyStreamTest, AWholeSessionIsUnderstood) {
  const Session session = whole_session();
  ASSERT_GT(session.counts.zero * session.counts.raw * session.counts.lz4, 0u) << "every encoding occurs";
  const Outcome outcome = verify(session.stream, "--memory-pages 400");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.output,
            "{\"frames\": 27, \"epochs\": 3, \"pages\": {\"zero\": " + std::to_string(session.counts.zero) +
                ", \"raw\": " + std::to_string(session.counts.raw) +
                ", \"lz4\": " + std::to_string(session.counts.lz4) +
                ", \"delta\": 0, \"delta_lz4\": 0}, \"kept\": 0, \"runs\": {\"zero\": 0, \"raw\": 0, "
                "\"lz4\": 0, \"hole\": 0}, "
                "\"disk_bytes\": 0, \"settled\": 0, \"sent_bytes\": " +
                std::to_string(session.stream.size()) + ", \"generation\": 5, \"image\": \"" +
                session.image() + "\"}\n");
}

TEST(VerifyStreamTest, DeltasMakeTheImageThatWasSent) {
  const Session session = whole_session(/*deltas=*/true);
  ASSERT_GT(session.counts.delta * session.counts.delta_lz4 * session.counts.same, 0u);
  const Outcome outcome = verify(session.stream, "--memory-pages 400");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("\"delta\": " + std::to_string(session.counts.delta)));
  EXPECT_THAT(outcome.output, HasSubstr("\"delta_lz4\": " + std::to_string(session.counts.delta_lz4)));
  EXPECT_THAT(outcome.output, HasSubstr("\"image\": \"" + session.image() + "\""));
  EXPECT_LT(session.stream.size(), whole_session().stream.size());
}

TEST(VerifyStreamTest, PagesOutsideTheMemoryAreRefused) {
  EXPECT_EQ(verify(whole_session().stream, "--memory-pages 399").exit_code, 0);
  const Outcome outcome = verify(whole_session().stream, "--memory-pages 398");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("page 398 lies outside the memory"));
}

TEST(VerifyStreamTest, DamagedCopiesAreRefusedWithOneLine) {
  const Bytes good = whole_session().stream;
  for (size_t i = 0; i < 24; ++i) {
    Bytes damaged = good;
    damaged[i * (good.size() - 1) / 23] ^= std::byte{0x10};
    const Outcome outcome = verify(damaged);
    EXPECT_EQ(outcome.exit_code, 1) << i;
    EXPECT_THAT(outcome.output, ::testing::MatchesRegex("verify_stream: [^\n]*\n")) << i;
  }
}

TEST(VerifyStreamTest, ACutStreamIsRefusedUnlessTheSenderWasKilled) {
  Bytes cut = whole_session().stream;
  cut.resize(cut.size() - 1);
  EXPECT_THAT(verify(cut).output, HasSubstr("ends within"));
  EXPECT_EQ(verify(cut, "--allow-cut").exit_code, 0);
}

struct Fault {
  std::string name;
  std::function<void(Session&)> write;
  std::string complaint;
};

class VerifyStreamFaultTest : public ::testing::TestWithParam<Fault> {};

TEST_P(VerifyStreamFaultTest, IsRefused) {
  Session session;
  GetParam().write(session);
  const Outcome outcome = verify(session.stream);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr(GetParam().complaint));
}

/// Epoch 1 after a handshake, its commit changed.
std::function<void(Session&)> with_commit(std::function<void(Commit*)> change) {
  return [change = std::move(change)](Session& s) {
    s.add_handshake();
    s.add_pages(1, 3);
    s.add_blob(FrameType::device, 1, 100);
    s.add_commit(1, change);
  };
}

/// A delta of page 1, as it stands, in epoch 1.
std::function<void(Session&)> with_delta(PageEncoding encoding, const Bytes& payload, uint64_t features = 1) {
  return [encoding, payload, features](Session& s) {
    Hello hello;
    hello.generation = 5;
    hello.features = features;
    s.add_record(FrameType::hello, 0, hello);
    s.add_text(FrameType::definition, "{}");
    s.add_text(FrameType::facts, "{}");
    PageEntry entry;
    entry.page = 1;
    entry.encoding = static_cast<uint8_t>(encoding);
    entry.payload_bytes = static_cast<uint32_t>(payload.size());
    Bytes body(8 + sizeof entry + payload.size());
    body[0] = std::byte{1};
    std::memcpy(body.data() + 8, &entry, sizeof entry);
    std::memcpy(body.data() + 8 + sizeof entry, payload.data(), payload.size());
    s.add(FrameType::pages, 1, body);
    s.add_goodbye();
  };
}

/// Line 0, word 0.
Bytes delta(uint8_t lines, uint8_t words, size_t bytes) {
  Bytes payload(bytes);
  payload[0] = std::byte{lines};
  payload[8] = std::byte{words};
  return payload;
}

/// An encoding of the only part of a device state of 5000 bytes.
std::function<void(Session&)> with_device_delta(FrameType type, const Bytes& data) {
  return [type, data](Session& s) {
    s.add_handshake();
    s.add_blob(FrameType::device, 1, 5000);
    s.add_commit(1);
    Bytes body;
    encode(BlobPart{5000, 0, 5000, PageEncoding::delta, data}, &body);
    s.add(type, 2, body);
    s.add_goodbye();
  };
}

TEST(VerifyStreamTest, WhatTheFaultsBelowAreMadeOfIsSound) {
  Session page, device(/*with_deltas=*/true);
  with_delta(PageEncoding::delta, delta(1, 1, 17))(page);
  EXPECT_EQ(verify(page.stream).exit_code, 0) << verify(page.stream).output;
  with_device_delta(FrameType::device, Bytes(4))(device);
  EXPECT_EQ(verify(device.stream).exit_code, 0) << verify(device.stream).output;
}

INSTANTIATE_TEST_SUITE_P(
    DeltaFaults, VerifyStreamFaultTest,
    ::testing::Values(
        Fault{"NotOffered", with_delta(PageEncoding::delta, delta(1, 1, 17), 0), "did not offer"},
        Fault{"NotOfferedLz4", with_delta(PageEncoding::delta_lz4, delta(1, 1, 17), 0), "did not offer"},
        Fault{"NoLine", with_delta(PageEncoding::delta, delta(0, 1, 17)), "changes no line"},
        Fault{"NoWord", with_delta(PageEncoding::delta, delta(1, 0, 17)), "changes no word"},
        Fault{"TooShort", with_delta(PageEncoding::delta, delta(1, 3, 17)), "difference is cut off"},
        Fault{"TooLong", with_delta(PageEncoding::delta, delta(1, 1, 18)), "too many"},
        Fault{"NotLz4", with_delta(PageEncoding::delta_lz4, delta(1, 1, 17)), "PAGES"},
        Fault{"AsLongAsThePage", with_delta(PageEncoding::delta, delta(1, 1, 4096)), "payload of 4096"}),
    [](const auto& test) { return test.param.name; });

class VerifyStreamDeviceFaultTest : public VerifyStreamFaultTest {};

TEST_P(VerifyStreamDeviceFaultTest, IsRefused) {
  Session session(/*with_deltas=*/true);
  GetParam().write(session);
  EXPECT_THAT(verify(session.stream).output, HasSubstr(GetParam().complaint));
}

Bytes last_word_of_a_block() {
  Bytes data(4);
  data[2] = std::byte{17};
  Bytes word(17);
  word[7] = std::byte{0x80};
  word[8] = std::byte{1};
  word[9] = std::byte{1};
  data.insert(data.end(), word.begin(), word.end());
  return data;
}

INSTANTIATE_TEST_SUITE_P(
    DeltaFaults, VerifyStreamDeviceFaultTest,
    ::testing::Values(Fault{"OfABaseStream", with_device_delta(FrameType::base, Bytes(4)), "base stream"},
                      Fault{"BlockMissing", with_device_delta(FrameType::device, Bytes(2)), "cut off"},
                      Fault{"BytesLeftOver", with_device_delta(FrameType::device, Bytes(6)), "too many"},
                      Fault{"PastTheBlob", with_device_delta(FrameType::device, last_word_of_a_block()),
                            "past its blob"},
                      Fault{"AnotherLength",
                            [](Session& s) {
                              s.add_handshake();
                              Bytes body, data(4);
                              encode(BlobPart{5000, 0, 5000, PageEncoding::delta, data}, &body);
                              s.add(FrameType::device, 1, body);
                            },
                            "a state of 0 bytes"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Faults, VerifyStreamFaultTest,
    ::testing::Values(Fault{"EmptyStream", [](Session&) {}, "empty"},
                      Fault{"NoHello", [](Session& s) { s.add_text(FrameType::definition, "{}"); }, "HELLO"},
                      Fault{"PagesBeforeFacts",
                            [](Session& s) {
                              s.add_hello();
                              s.add_pages(1, 1);
                            },
                            "before FACTS"},
                      Fault{"EpochSkipped",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_epoch(2);
                            },
                            "epoch 2 where 1 was due"},
                      Fault{"EpochRepeated",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_epoch(1);
                              s.add_epoch(1);
                            },
                            "epoch 1 where 2 was due"},
                      Fault{"NoDeviceState",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_pages(1, 3);
                              s.add_commit(1);
                            },
                            "no device state"},
                      Fault{"WrongDigest", with_commit([](Commit* c) { c->digest ^= 1; }), "digest"},
                      Fault{"WrongFrames", with_commit([](Commit* c) { ++c->frames; }), "frames committed"},
                      Fault{"WrongPages", with_commit([](Commit* c) { --c->pages; }), "pages committed"},
                      Fault{"WrongDeviceBytes", with_commit([](Commit* c) { ++c->device_bytes; }),
                            "device state committed"},
                      Fault{"WrongRawBytes", with_commit([](Commit* c) { ++c->raw_bytes; }),
                            "raw bytes committed"},
                      Fault{"AfterGoodbye",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_goodbye();
                              s.add_epoch(1);
                            },
                            "after the last one"},
                      Fault{"GenerationFalls",
                            [](Session& s) {
                              s.add_handshake();
                              s.writer.set_generation(4);
                              s.add_epoch(1);
                            },
                            "generation fell"},
                      Fault{"UnknownMandatory",
                            [](Session& s) {
                              s.add_handshake();
                              s.add(static_cast<FrameType>(31), 0, {});
                            },
                            "mandatory"},
                      Fault{"SettledNotOffered",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_epoch(1);
                              s.add_record(FrameType::settled, 0, Settled{1});
                            },
                            "did not offer"},
                      Fault{"SettledBeforeItsCommit",
                            [](Session& s) {
                              s.holds = true;
                              s.add_handshake();
                              s.add_epoch(1);
                              s.add_record(FrameType::settled, 0, Settled{2});
                            },
                            "SETTLED of epoch 2"},
                      Fault{"BackupsRecord",
                            [](Session& s) {
                              s.add_handshake();
                              s.add_record(FrameType::ack, 0, Ack{});
                            },
                            "never sends"},
                      Fault{"GapInBlob",
                            [](Session& s) {
                              s.add_handshake();
                              Bytes body;
                              encode(BlobPart{10, 4, 0, PageEncoding::raw, {}}, &body);
                              s.add(FrameType::device, 1, body);
                            },
                            "DEVICE"},
                      Fault{"TrailingBytes",
                            [](Session& s) {
                              s.add_handshake();
                              s.add(FrameType::heartbeat, 0, Bytes(17));
                            },
                            "too many"},
                      Fault{"FileGap",
                            [](Session& s) {
                              s.add_hello();
                              s.add_text(FrameType::definition, "{}");
                              s.add_record(FrameType::file, 0, FilePart{"00", 10, 5, Bytes(5)});
                            },
                            "does not follow"}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace remusd::ckpt
