// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/handshake.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ckpt/scoped_fd.h"

namespace remusd::primary {
namespace {

using ckpt::FrameType;

constexpr uint64_t kFilePartBytes = 1u << 20;

std::string digest_of(ckpt::View content) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(content.data(), content.size()));
  std::string hex;
  for (const unsigned char byte : canonical.digest) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

Result<ckpt::Bytes> read_file(const std::string& role, const std::string& path) {
  const std::string what = "read " + role + " " + path;
  ScopedFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return Status::from_errno(what);
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return Status::from_errno(what);
  if (!S_ISREG(info.st_mode) || info.st_size <= 0)
    return Status(Code::invalid, what + ": not a file with content");
  if (static_cast<uint64_t>(info.st_size) > ckpt::kMaxFileBytes) {
    return Status(Code::exhausted,
                  what + ": larger than " + std::to_string(ckpt::kMaxFileBytes >> 20) + " MiB");
  }
  ckpt::Bytes content(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t got = ::read(file.get(), content.data() + done, content.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status::from_errno(what);
    if (got == 0) return Status(Code::io, what + ": it became shorter while it was read");
    done += static_cast<size_t>(got);
  }
  return content;
}

void put_text(const std::string& text, ckpt::Bytes* body) {
  const auto* bytes = reinterpret_cast<const std::byte*>(text.data());
  body->insert(body->end(), bytes, bytes + text.size());
}

}  // namespace

Result<std::vector<BootFile>> read_boot_files(const guest::Definition& definition) {
  std::vector<BootFile> files;
  for (const auto& [role, path] : {std::pair<std::string, std::string>{"kernel", definition.kernel},
                                   std::pair<std::string, std::string>{"initrd", definition.initrd}}) {
    if (path.empty()) continue;
    REMUSD_ASSIGN(ckpt::Bytes content, read_file(role, path));
    std::string digest = digest_of(content);
    files.push_back({role, std::move(digest), std::move(content)});
  }
  return files;
}

std::string definition_body(const guest::Definition& definition, const std::vector<BootFile>& files) {
  nlohmann::json body;
  body["definition"] = nlohmann::json::parse(guest::to_json(definition));
  body["files"] = nlohmann::json::array();
  for (const BootFile& file : files)
    body["files"].push_back({{"role", file.role}, {"digest", file.digest}, {"bytes", file.content.size()}});
  return body.dump();
}

bool Handshake::next(FrameType* type, ckpt::Bytes* body) {
  body->clear();
  if (step_ == Step::files) {
    if (file_ < wanted_.size()) {
      const BootFile& file = config_.files[wanted_[file_]];
      const uint64_t bytes = std::min<uint64_t>(kFilePartBytes, file.content.size() - offset_);
      ckpt::encode(
          ckpt::FilePart{file.digest, file.content.size(), offset_, {file.content.data() + offset_, bytes}},
          body);
      *type = FrameType::file;
      offset_ += bytes;
      if (offset_ == file.content.size()) {
        ++file_;
        offset_ = 0;
      }
      return true;
    }
    config_.files.clear();
    step_ = Step::facts;
    sent_ = false;
  }
  if (sent_ || step_ == Step::ready) return false;
  sent_ = true;
  switch (step_) {
    case Step::hello:
      ckpt::encode(config_.hello, body);
      *type = FrameType::hello;
      return true;
    case Step::definition:
      put_text(config_.definition, body);
      *type = FrameType::definition;
      return true;
    case Step::facts:
      put_text(config_.facts, body);
      *type = FrameType::facts;
      return true;
    case Step::files:
    case Step::ready:
      break;
  }
  return false;
}

Status Handshake::on_frame(const ckpt::FrameView& frame) {
  const auto out_of_turn = [&] {
    return Status(Code::corrupt, "backup " + config_.peer + " sent frame type " +
                                     std::to_string(frame.header.type) + " out of its turn");
  };
  switch (frame.type()) {
    case FrameType::hello: {
      if (step_ != Step::hello || !sent_) return out_of_turn();
      ckpt::Hello theirs;
      REMUSD_TRY(ckpt::decode(frame.body, &theirs));
      return on_hello(theirs);
    }
    case FrameType::need_files: {
      if (step_ != Step::definition || !sent_) return out_of_turn();
      ckpt::NeedFiles need;
      REMUSD_TRY(ckpt::decode(frame.body, &need));
      return on_need_files(need);
    }
    case FrameType::ready: {
      if (step_ != Step::facts || !sent_) return out_of_turn();
      REMUSD_TRY(ckpt::decode(frame.body, &limits_));
      if (limits_.memory_bytes != config_.memory_bytes) {
        return Status(Code::unsafe, "the standby has " + std::to_string(limits_.memory_bytes) +
                                        " bytes of memory, the guest " +
                                        std::to_string(config_.memory_bytes));
      }
      step_ = Step::ready;
      return Status::ok_status();
    }
    default:
      return out_of_turn();
  }
}

Status Handshake::on_hello(const ckpt::Hello& theirs) {
  if (const auto version = ckpt::negotiate(config_.hello, theirs); !version.ok()) return version.status();
  if (theirs.session != config_.hello.session || theirs.vm != config_.hello.vm)
    return Status(Code::corrupt, "backup " + config_.peer + " answered for another session");
  if (!config_.peer.empty() && theirs.node != config_.peer) {
    return Status(Code::unsafe, "the peer calls itself '" + theirs.node + "', not '" + config_.peer +
                                    "': check the peer's address and both nodes' names");
  }
  features_ = config_.hello.features & theirs.features;
  step_ = Step::definition;
  sent_ = false;
  return Status::ok_status();
}

Status Handshake::on_need_files(const ckpt::NeedFiles& need) {
  for (const ckpt::FileNeed& file : need.files) {
    const auto found = std::find_if(config_.files.begin(), config_.files.end(),
                                    [&](const BootFile& ours) { return ours.digest == file.digest; });
    if (found == config_.files.end())
      return Status(Code::corrupt, "backup " + config_.peer + " asks for a file that was not offered");
    const auto index = static_cast<size_t>(found - config_.files.begin());
    if (std::find(wanted_.begin(), wanted_.end(), index) == wanted_.end()) wanted_.push_back(index);
  }
  step_ = Step::files;
  return Status::ok_status();
}

}  // namespace remusd::primary
