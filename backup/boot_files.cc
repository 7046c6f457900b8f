// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/boot_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "arbiter/arbiter.h"
#include "guest/json_fields.h"

namespace remusd::backup {
namespace {

constexpr size_t kReadBytes = 1u << 20;
constexpr size_t kMaxFiles = 2;  // kernel and initrd

bool is_digest(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

Status write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Status::from_errno("write " + path);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

Status bad_definition(const std::string& what) {
  return Status(Code::corrupt, "DEFINITION record: " + what);
}

}  // namespace

Result<std::string> digest_of_file(const std::string& path) {
  const ScopedFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return Status::from_errno("open " + path);
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::vector<std::byte> buffer(kReadBytes);
  while (true) {
    const ssize_t got = ::read(file.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status::from_errno("read " + path);
    if (got == 0) break;
    XXH3_128bits_update(state.get(), buffer.data(), static_cast<size_t>(got));
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state.get()));
  std::string hex;
  for (const unsigned char byte : canonical.digest) {
    hex += "0123456789abcdef"[byte >> 4];
    hex += "0123456789abcdef"[byte & 15];
  }
  return hex;
}

BootFiles::~BootFiles() {
  drop_part();
}

Status BootFiles::open(std::string_view text, guest::Definition* definition) {
  const nlohmann::json json = guest::parse_json(text);
  if (!json.is_object() || !json.contains("definition") || !json["definition"].is_object()) {
    return bad_definition("no JSON object with a \"definition\"");
  }
  // A string that is not UTF-8 would have failed to parse, so dump() cannot throw.
  REMUSD_ASSIGN(*definition, guest::definition_from_json(json["definition"].dump()));
  REMUSD_TRY(guest::complete_and_validate(definition));

  const nlohmann::json files = json.value("files", nlohmann::json::array());
  if (!files.is_array() || files.size() > kMaxFiles)
    return bad_definition("\"files\" is no list of at most 2");
  for (const nlohmann::json& file : files) {
    if (!file.is_object() || !file.contains("role") || !file["role"].is_string() ||
        !file.contains("digest") || !file["digest"].is_string() || !file.contains("bytes") ||
        !file["bytes"].is_number_unsigned()) {
      return bad_definition("a file needs \"role\", \"digest\" and \"bytes\"");
    }
    const auto role = file["role"].get<std::string>();
    const auto digest = file["digest"].get<std::string>();
    const auto bytes = file["bytes"].get<uint64_t>();
    if (role != "kernel" && role != "initrd")
      return bad_definition("a file's role is \"kernel\" or \"initrd\"");
    if (!is_digest(digest)) return bad_definition("the " + role + "'s digest is not 32 hexadecimal digits");
    if (bytes > ckpt::kMaxFileBytes) {
      return Status(Code::exhausted, "the " + role + " has " + std::to_string(bytes) + " bytes; at most " +
                                         std::to_string(ckpt::kMaxFileBytes) + " are taken");
    }
    REMUSD_TRY(find(role, digest, bytes, role == "kernel" ? definition->kernel : definition->initrd));
  }
  return {};
}

Status BootFiles::find(const std::string& role, const std::string& digest, uint64_t bytes,
                       const std::string& given) {
  const std::string stored = dir_ + "/" + digest;
  for (const std::string& path : {stored, given}) {
    struct stat info {};
    // What claims to be empty may be a file of the kernel's, and reading that may wait for ever.
    if (bytes == 0 || path.empty() || ::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode) ||
        static_cast<uint64_t>(info.st_size) != bytes) {
      continue;
    }
    const Result<std::string> found = digest_of_file(path);
    if (!found.ok() || *found != digest) continue;
    known_.push_back({role, path});
    return {};
  }
  known_.push_back({role, stored});
  const bool asked = std::any_of(needs_.files.begin(), needs_.files.end(),
                                 [&](const ckpt::FileNeed& need) { return need.digest == digest; });
  if (!asked) needs_.files.push_back({role, digest, bytes});
  return {};
}

Status BootFiles::add(const ckpt::FilePart& part) {
  if (complete()) return Status(Code::corrupt, "FILE record: no more file was asked for");
  const ckpt::FileNeed& need = needs_.files[arriving_];
  if (part.digest != need.digest || part.total_bytes != need.bytes || part.offset != part_bytes_ ||
      part.data.size() > need.bytes - part_bytes_) {
    return Status(Code::corrupt, "FILE record: not the next part of the " + need.role + " " + need.digest);
  }
  if (!part_) {
    std::error_code error;
    std::filesystem::create_directories(dir_, error);
    if (error) return Status(Code::io, "create directory " + dir_ + ": " + error.message());
    // A name of its own: two sessions may receive the same file at once.
    part_path_ = dir_ + "/" + need.digest + ".part-" + arbiter::make_nonce();
    part_.reset(::open(part_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!part_) return Status::from_errno("create " + part_path_);
  }
  REMUSD_TRY(write_all(part_.get(), part.data, part_path_));
  part_bytes_ += part.data.size();
  return part_bytes_ == need.bytes ? close_file(need) : Status();
}

Status BootFiles::close_file(const ckpt::FileNeed& need) {
  if (::fsync(part_.get()) != 0) return Status::from_errno("sync " + part_path_);
  REMUSD_ASSIGN(const std::string digest, digest_of_file(part_path_));
  if (digest != need.digest) {
    return Status(Code::corrupt,
                  "the " + need.role + " came as " + digest + ", but " + need.digest + " was announced");
  }
  const std::string path = dir_ + "/" + need.digest;
  if (::rename(part_path_.c_str(), path.c_str()) != 0) return Status::from_errno("rename " + part_path_);
  part_path_.clear();
  part_.reset();
  part_bytes_ = 0;
  ++arriving_;
  const ScopedFd directory(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory || ::fsync(directory.get()) != 0) return Status::from_errno("sync directory " + dir_);
  return {};
}

void BootFiles::drop_part() {
  part_.reset();
  if (!part_path_.empty()) ::unlink(part_path_.c_str());
  part_path_.clear();
}

void BootFiles::localize(guest::Definition* definition) const {
  REMUSD_ASSERT(complete(), "every file is here");
  for (const Known& known : known_) {
    (known.role == "kernel" ? definition->kernel : definition->initrd) = known.path;
  }
}

}  // namespace remusd::backup
