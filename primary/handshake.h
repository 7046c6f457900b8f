// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's half of the handshake, pure: frames come in, the next frame to send goes out.
//
//   hello --HELLO--> definition --NEED_FILES--> files --all parts taken--> facts --READY--> ready
//
// A frame out of its turn, a file that was never offered, or an answer of another session is `corrupt`.
#pragma once

#include <string>
#include <vector>

#include "ckpt/frame.h"
#include "ckpt/records.h"
#include "guest/guest.h"

namespace remusd::primary {

/// A file that the standby needs to start: read whole before protection begins, so that it cannot change or
/// go away later.
struct BootFile {
  std::string role;    // "kernel", "initrd"
  std::string digest;  // XXH3-128 of the content, canonical, in hex
  ckpt::Bytes content;
};

Result<std::vector<BootFile>> read_boot_files(const guest::Definition& definition);

/// The DEFINITION body: {"definition":{…},"files":[{"role":…,"digest":…,"bytes":…}]}.
std::string definition_body(const guest::Definition& definition, const std::vector<BootFile>& files);

class Handshake {
 public:
  struct Config {
    ckpt::Hello hello;
    std::string peer;  // the name that the backup must give
    std::string definition;
    std::string facts;
    std::vector<BootFile> files;
    uint64_t memory_bytes = 0;
  };
  explicit Handshake(Config config) : config_(std::move(config)) {}

  /// The next frame to send, if it is our turn. It is taken: the caller must send it before it asks again.
  bool next(ckpt::FrameType* type, ckpt::Bytes* body);
  /// HELLO, NEED_FILES and READY.
  Status on_frame(const ckpt::FrameView& frame);

  /// The peer answered our HELLO: generations and heartbeats count from here on.
  bool agreed() const { return step_ >= Step::definition; }
  bool ready() const { return step_ == Step::ready; }
  const ckpt::Ready& limits() const { return limits_; }
  /// Those that both sides have, once agreed().
  uint64_t features() const { return features_; }

 private:
  enum class Step { hello, definition, files, facts, ready };

  Status on_hello(const ckpt::Hello& theirs);
  Status on_need_files(const ckpt::NeedFiles& need);

  Config config_;
  Step step_ = Step::hello;
  bool sent_ = false;           // what this step sends once
  std::vector<size_t> wanted_;  // indices of files
  size_t file_ = 0;             // of wanted_
  uint64_t offset_ = 0;
  ckpt::Ready limits_;
  uint64_t features_ = 0;
};

}  // namespace remusd::primary
