// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <filesystem>

#include "ckpt/scoped_fd.h"
#include "control/toml_reader.h"

namespace remusd::control {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kClockSkewSeconds = kDaySeconds;  // hosts whose clocks are somewhat behind take it, too
constexpr mode_t kPublic = 0644, kSecret = 0600;

struct NewFile {
  std::string path, text;
  mode_t mode;
};

Status must_not_exist(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};
  return {Code::exists, "keys: " + path + " exists already and is not overwritten; move it away first"};
}

Status write_new(const NewFile& file) {
  const ScopedFd out(
      ::open(file.path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, file.mode));
  if (!out && errno == EEXIST) return must_not_exist(file.path);
  if (!out) return {Code::io, Status::from_errno("keys: make " + file.path).message()};
  size_t done = 0;
  while (done < file.text.size()) {
    const ssize_t written = ::write(out.get(), file.text.data() + done, file.text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Status::from_errno("keys: write " + file.path);
    done += static_cast<size_t>(written);
  }
  return ::fsync(out.get()) == 0 ? Status() : Status::from_errno("keys: write " + file.path);
}

/// All of them, or none.
Result<std::vector<std::string>> write_all(const std::string& dir, const std::vector<NewFile>& files) {
  std::error_code error;
  if (fs::create_directories(dir, error)) fs::permissions(dir, fs::perms::owner_all, error);
  if (error) return Status(Code::io, "keys: make directory " + dir + ": " + error.message());
  for (const NewFile& file : files) REMUSD_TRY(must_not_exist(file.path));
  std::vector<std::string> written;
  for (const NewFile& file : files) {
    if (const Status status = write_new(file); !status.ok()) {
      if (status.code() != Code::exists) ::unlink(file.path.c_str());
      for (const std::string& path : written) ::unlink(path.c_str());
      return status;
    }
    written.push_back(file.path);
  }
  return written;
}

}  // namespace

Result<std::vector<std::string>> init_authority(const std::string& dir) {
  const int64_t now = std::time(nullptr);
  REMUSD_ASSIGN(const ckpt::KeyPair made,
                ckpt::make_authority({now - kClockSkewSeconds, now + kAuthorityDays * kDaySeconds}));
  return write_all(dir, {{dir + "/ca.key", made.key, kSecret}, {dir + "/ca.crt", made.certificate, kPublic}});
}

Result<std::vector<std::string>> issue_node(const std::string& dir, const std::string& node, int days,
                                            const std::string& out) {
  if (!is_name(node) || node == "ca")
    return Status(Code::invalid, "keys: node name '" + node + "' must be " + kNameRule + ", and not 'ca'");
  const auto there = [&](Result<std::string> text) -> Result<std::string> {
    if (text.ok()) return text;
    // Not `not_found`, which would stand for a guest that nobody knows.
    return Status(Code::unavailable, text.status().message() +
                                         "; is the authority in another directory (--dir), " +
                                         "or still to be made (remusd keys init)?");
  };
  ckpt::KeyPair authority;
  REMUSD_ASSIGN(authority.certificate,
                there(ckpt::read_pem_file(dir + "/ca.crt", "the authority's certificate", false)));
  REMUSD_ASSIGN(authority.key, there(ckpt::read_pem_file(dir + "/ca.key", "the authority's key", true)));
  REMUSD_ASSIGN(const auto facts, ckpt::certificate_facts(authority.certificate, dir + "/ca.crt"));
  const int64_t now = std::time(nullptr);
  if (now > facts.validity.not_after) {
    return Status(Code::unavailable, "keys: the authority in " + dir + " expired at " +
                                         ckpt::format_utc(facts.validity.not_after) + "; make a new one");
  }
  const ckpt::Validity validity{std::max(now - kClockSkewSeconds, facts.validity.not_before),
                                std::min(now + days * kDaySeconds, facts.validity.not_after)};
  REMUSD_ASSIGN(const ckpt::KeyPair made, ckpt::issue_certificate(authority, node, validity));
  if (out.empty()) {
    return write_all(dir, {{dir + "/" + node + ".key", made.key, kSecret},
                           {dir + "/" + node + ".crt", made.certificate, kPublic}});
  }
  std::vector<NewFile> files{{out + "/node.key", made.key, kSecret},
                             {out + "/node.crt", made.certificate, kPublic}};
  // The authority's host may be a node itself.
  const auto present = ckpt::read_pem_file(out + "/ca.crt", "the authority's certificate", false);
  if (!present.ok() || *present != authority.certificate)
    files.push_back({out + "/ca.crt", authority.certificate, kPublic});
  return write_all(out, files);
}

Result<std::vector<CertificateEntry>> list_certificates(const std::string& dir,
                                                        const std::vector<std::string>& files) {
  std::vector<std::string> paths = files;
  std::error_code error;
  if (paths.empty()) {
    for (const auto& entry : fs::directory_iterator(dir, error))
      if (entry.path().extension() == ".crt") paths.push_back(entry.path().string());
    std::sort(paths.begin(), paths.end());
  }
  if (paths.empty()) {
    return Status(Code::unavailable, "keys: no certificates in " + dir +
                                         (error ? ": " + error.message() : "") +
                                         "; make them with 'remusd keys init' and 'remusd keys issue NODE'");
  }
  std::vector<CertificateEntry> entries;
  const int64_t now = std::time(nullptr);
  for (const std::string& path : paths) {
    const auto text = ckpt::read_pem_file(path, "certificate", false);
    if (!text.ok()) return Status(Code::unavailable, text.status().message());
    REMUSD_ASSIGN(auto facts, ckpt::certificate_facts(*text, path));
    const int64_t left = facts.validity.not_after - now;
    entries.push_back({path, std::move(facts), (left < 0 ? left - kDaySeconds + 1 : left) / kDaySeconds});
  }
  return entries;
}

}  // namespace remusd::control
