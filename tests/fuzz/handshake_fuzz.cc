// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's side of a handshake: a list of frames, each a type and a body. A guest that would start a
// program or map much memory is not prepared.
#include <optional>

#include "backup/handshake.h"
#include "guest/definition.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

using ckpt::FrameType;

constexpr uint64_t kGeneration = 3;
constexpr uint64_t kMostMemoryMib = 4;
constexpr size_t kSendQueueBytes = 1u << 20;

struct World {
  ScratchFolder folder;
  backup::Options options;
  ScopedFd peer;
  std::unique_ptr<ckpt::Link> link;

  World() {
    options.node = "b";
    options.files_dir = folder.path() + "/files";
    options.driver.runtime_dir = folder.path();
    options.driver.qemu_binary = "/nonexistent";
  }
  /// The link's answers are not read: it is made anew before its queue is full.
  ckpt::Link& fresh_link() {
    if (link == nullptr || !link->open() || link->send_space() < kSendQueueBytes / 2) {
      auto [here, there] = socket_pair();
      auto made = ckpt::Link::adopt(std::move(here), {.send_queue_bytes = kSendQueueBytes});
      REMUSD_ASSERT(made.ok(), "there is a ring");
      link = *std::move(made);
      peer = std::move(there);
    }
    return *link;
  }
};

World& world() {
  static World one;
  return one;
}

/// Preparing it stays in this process and is small.
bool is_harmless(const guest::Definition& definition) {
  return definition.driver == "sim" && definition.memory_mib <= kMostMemoryMib && definition.nics.empty() &&
         definition.disks.empty();
}

void run(View bytes) {
  Input input(bytes);
  bool received_files = false;
  {
    backup::Handshake handshake(
        world().fresh_link(), world().options,
        [](const std::string& vm, const std::string&, uint64_t) {
          return vm == "other" ? Status(Code::exists, "it runs here") : Status();
        },
        [] {});
    while (!input.empty() && !handshake.done() && handshake.refusal().ok()) {
      ckpt::FrameView frame;
      frame.header.type = input.number();
      frame.header.generation = kGeneration;
      frame.body = input.chunk();
      if (frame.type() == FrameType::facts && !is_harmless(handshake.definition())) break;
      received_files = received_files || frame.type() == FrameType::file;
      if (const Status status = handshake.on_frame(frame); !status.ok()) {
        require_reason(status);
        break;
      }
      REMUSD_ASSERT(handshake.generation() == 0 || handshake.generation() == kGeneration,
                    "the generation is the frame's");
    }
    if (!handshake.refusal().ok()) require_reason(handshake.refusal());
    if (handshake.done()) {
      REMUSD_ASSERT(handshake.definition().name == handshake.vm(), "the guest is the one that was admitted");
      const auto standby = handshake.take_standby();
      REMUSD_ASSERT(standby != nullptr && standby->memory().size() == handshake.definition().memory_mib << 20,
                    "the standby is as large as defined");
      REMUSD_ASSERT(handshake.staging_limit_bytes() >= standby->memory().size(),
                    "there is room for an epoch");
      REMUSD_ASSERT(standby->destroy().ok(), "a standby can be given up");
    }
  }
  std::error_code ignored;
  if (received_files) std::filesystem::remove_all(world().options.files_dir, ignored);
}

void put_frame(FrameType type, std::string_view text, Bytes* out) {
  put_number(static_cast<uint8_t>(type), out);
  put_chunk(text, out);
}

void seeds(Seeds* out) {
  ckpt::Hello hello;
  hello.features = ckpt::kFeatureDelta;
  hello.generation = kGeneration;
  hello.node = "a";
  hello.vm = "g";
  Bytes body, frames;
  ckpt::encode(hello, &body);
  put_frame(FrameType::hello, text_of(body), &frames);
  guest::Definition definition;
  definition.name = "g";
  definition.driver = "sim";
  definition.memory_mib = 1;
  REMUSD_ASSERT(guest::complete_and_validate(&definition).ok(), "the definition is right");
  const std::string json = guest::to_json(definition);
  const auto standby = guest::prepare(definition, world().options.driver);
  REMUSD_ASSERT(standby.ok(), "the standby can be made");
  const std::string facts = guest::to_json((*standby)->facts());

  Bytes plain = frames;
  put_frame(FrameType::definition, R"({"definition":)" + json + R"(,"files":[]})", &plain);
  put_frame(FrameType::facts, facts, &plain);
  out->add(plain);

  MemoryFile kernel;
  const std::string content = "kernel";
  kernel.replace(bytes_of(content));
  const auto digest = backup::digest_of_file(kernel.path());
  REMUSD_ASSERT(digest.ok(), "the file can be read");
  put_frame(
      FrameType::definition,
      R"({"definition":)" + json + R"(,"files":[{"role":"kernel","digest":")" + *digest + R"(","bytes":6}]})",
      &frames);
  for (const uint64_t at : {0, 3}) {
    body.clear();
    ckpt::encode(ckpt::FilePart{*digest, 6, at, bytes_of(content).subspan(at, 3)}, &body);
    put_frame(FrameType::file, text_of(body), &frames);
  }
  put_frame(FrameType::facts, facts, &frames);
  out->add(frames);
  out->words = {"\"definition\"", "\"files\"",  "\"role\"", "\"digest\"",     "\"bytes\"",
                "\"kernel\"",     "\"initrd\"", "\"sim\"",  "\"memory_mib\"", "other"};
}

REMUSD_FUZZ_TARGET(handshake, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
