// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/stream.h"

#include <algorithm>
#include <string_view>

namespace remusd::guest::qemu {
namespace {

constexpr uint32_t kMagic = 0x5145564d;  // "QEVM"
constexpr uint32_t kVersion = 3;
constexpr size_t kHeaderBytes = 8;

constexpr uint8_t kEof = 0x00;
constexpr uint8_t kSectionStart = 0x01;
constexpr uint8_t kSectionPart = 0x02;
constexpr uint8_t kSectionEnd = 0x03;
constexpr uint8_t kSectionFull = 0x04;
constexpr uint8_t kSubsection = 0x05;
constexpr uint8_t kConfiguration = 0x07;
constexpr uint8_t kFooter = 0x7e;

constexpr uint32_t kRamVersion = 4;
constexpr uint64_t kTargetPageBytes = 4096;
// Flags in the low bits of a page offset.
constexpr uint64_t kFlagMask = kTargetPageBytes - 1;
constexpr uint64_t kFlagZero = 0x02;
constexpr uint64_t kFlagMemSize = 0x04;
constexpr uint64_t kFlagPage = 0x08;
constexpr uint64_t kFlagEos = 0x10;
constexpr uint64_t kFlagContinue = 0x20;

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t at() const { return at_; }
  bool failed() const { return failed_; }
  bool done() const { return at_ == bytes_.size(); }

  uint64_t number(size_t size) {
    if (!need(size)) return 0;
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) value = value << 8 | std::to_integer<uint64_t>(bytes_[at_ + i]);
    at_ += size;
    return value;
  }
  uint8_t u8() { return static_cast<uint8_t>(number(1)); }
  uint32_t be32() { return static_cast<uint32_t>(number(4)); }
  uint64_t be64() { return number(8); }
  std::string_view text(size_t size) {
    if (!need(size)) return {};
    at_ += size;
    return {reinterpret_cast<const char*>(bytes_.data()) + at_ - size, size};
  }
  std::string_view counted_text() { return text(u8()); }
  void skip(size_t size) {
    if (need(size)) at_ += size;
  }
  uint8_t peek() const { return done() ? kEof : std::to_integer<uint8_t>(bytes_[at_]); }

  Status corrupt(const std::string& what) const {
    if (failed_)
      return {Code::corrupt, "migration stream: ends in the middle, at byte " + std::to_string(at_)};
    return {Code::corrupt, "migration stream: " + what + " before byte " + std::to_string(at_)};
  }

 private:
  bool need(size_t size) {
    if (size > bytes_.size() - at_) failed_ = true;
    return !failed_;
  }

  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  bool failed_ = false;
};

class HeadParser {
 public:
  explicit HeadParser(std::span<const std::byte> stream) : in_(stream) {}

  Result<BaseContents> parse() {
    if (in_.be32() != kMagic || in_.be32() != kVersion) return in_.corrupt("no QEVM version 3 header");
    if (in_.peek() == kConfiguration) REMUSD_TRY(configuration());
    out_.ram_offset = in_.at();
    REMUSD_TRY(start());
    while (!ended_) REMUSD_TRY(next());
    out_.head_bytes = in_.at();
    return std::move(out_);
  }

 private:
  // be32 n, machine name | subsections: 0x05 | u8 n, name | be32 version | fields
  Status configuration() {
    in_.u8();
    in_.text(in_.be32());
    while (!in_.failed() && in_.peek() == kSubsection) {
      in_.u8();
      const std::string_view name = in_.counted_text();
      in_.be32();
      if (name == "configuration/target-page-bits") {
        in_.skip(4);
      } else if (name == "configuration/capabilities") {
        const uint32_t count = in_.be32();
        for (uint32_t i = 0; i < count && !in_.failed(); ++i) in_.counted_text();
      } else if (name == "configuration/uuid") {
        in_.skip(16);
      } else {
        return {Code::unsupported,
                "migration stream: configuration subsection '" + std::string(name) +
                    "' is not known; start QEMU with -global migration.send-configuration=off"};
      }
    }
    return in_.failed() ? in_.corrupt("configuration") : Status();
  }

  Status start() {
    if (in_.u8() != kSectionStart) return in_.corrupt("no start of a live section");
    id_ = in_.be32();
    const std::string name(in_.counted_text());
    in_.be32();  // instance
    const uint32_t version = in_.be32();
    if (in_.failed()) return in_.corrupt("");
    if (name != "ram") {
      return {Code::unsupported, "migration stream: live section '" + name + "' cannot be carried over"};
    }
    if (version != kRamVersion) return in_.corrupt("version " + std::to_string(version) + " of section ram");
    return data();
  }

  Status next() {
    const uint8_t type = in_.u8();
    if (in_.failed()) return in_.corrupt("");
    if (type == kSectionStart) {
      return {Code::unsupported, "migration stream: a second live section cannot be carried over"};
    }
    if (type != kSectionPart && type != kSectionEnd) {
      return in_.corrupt("section type " + std::to_string(type) + " amid the ram sections");
    }
    if (in_.be32() != id_) return in_.corrupt("a section of another id");
    ended_ = type == kSectionEnd;
    return data();
  }

  // Records up to the end-of-section flag, then the footer.
  Status data() {
    for (;;) {
      const uint64_t word = in_.be64();
      if (in_.failed()) return in_.corrupt("");
      const uint64_t flags = word & kFlagMask, offset = word & ~kFlagMask;
      if (flags == kFlagEos) break;
      if (flags == kFlagMemSize) {
        REMUSD_TRY(block_list(offset));
      } else {
        REMUSD_TRY(page(offset, flags));
      }
    }
    if (in_.u8() != kFooter || in_.be32() != id_) return in_.corrupt("no footer");
    return {};
  }

  Status block_list(uint64_t total) {
    if (!out_.blocks.empty()) return in_.corrupt("a second list of RAM blocks");
    while (total > 0) {
      RamBlock block;
      block.name = in_.counted_text();
      block.bytes = in_.be64();
      block.address = in_.be64();
      if (in_.failed()) return in_.corrupt("");
      if (block.bytes == 0 || block.bytes % kTargetPageBytes != 0 || block.bytes > total) {
        return in_.corrupt("RAM block of " + std::to_string(block.bytes) +
                           " bytes (was x-ignore-shared on?)");
      }
      if (out_.blocks.size() == kMaxRamBlocks) return in_.corrupt("too many RAM blocks");
      if (find(block.name) != nullptr) return in_.corrupt("a RAM block listed twice");
      total -= block.bytes;
      out_.blocks.push_back(std::move(block));
    }
    return {};
  }

  Status page(uint64_t offset, uint64_t flags) {
    const uint64_t kind = flags & ~kFlagContinue;
    if (kind != kFlagPage && kind != kFlagZero) {
      return in_.corrupt("page flags " + std::to_string(flags) + ", which are not known");
    }
    // CONTINUE means the last block that was named, in whichever section.
    if ((flags & kFlagContinue) == 0) current_ = find(in_.counted_text());
    if (in_.failed() || current_ == nullptr) return in_.corrupt("a page of no known RAM block");
    if (offset >= current_->bytes) return in_.corrupt("a page beyond its RAM block");
    ++current_->pages;
    in_.skip(kind == kFlagPage ? kTargetPageBytes : 1);
    return in_.failed() ? in_.corrupt("") : Status();
  }

  RamBlock* find(std::string_view name) {
    const auto found = std::find_if(out_.blocks.begin(), out_.blocks.end(),
                                    [name](const RamBlock& block) { return block.name == name; });
    return found == out_.blocks.end() ? nullptr : &*found;
  }

  Reader in_;
  BaseContents out_;
  uint32_t id_ = 0;
  bool ended_ = false;
  RamBlock* current_ = nullptr;  // into out_.blocks, which is complete before it is set
};

Status check_device_state(std::span<const std::byte> device) {
  // Magic, version, at least one section, end.
  if (device.size() < kHeaderBytes + 2) return {Code::corrupt, "device state: too short"};
  if (device.size() > kMaxDeviceBytes) {
    return {Code::corrupt, "device state: " + std::to_string(device.size()) + " bytes; at most " +
                               std::to_string(kMaxDeviceBytes) + " are expected"};
  }
  Reader in(device);
  if (in.be32() != kMagic || in.be32() != kVersion)
    return {Code::corrupt, "device state: no QEVM version 3 header"};
  if (in.peek() != kSectionFull) return {Code::corrupt, "device state: does not begin with a section"};
  if (std::to_integer<uint8_t>(device.back()) != kEof)
    return {Code::corrupt, "device state: has no end mark"};
  return {};
}

}  // namespace

Result<BaseContents> inspect(std::span<const std::byte> stream) {
  if (stream.size() > kMaxStreamBytes) {
    return Status(Code::corrupt, "migration stream: " + std::to_string(stream.size()) + " bytes; at most " +
                                     std::to_string(kMaxStreamBytes) + " are expected");
  }
  return HeadParser(stream).parse();
}

Result<std::vector<std::byte>> extract_base(std::span<const std::byte> stream, const std::string& ram) {
  REMUSD_ASSIGN(const BaseContents contents, inspect(stream));
  const auto block = std::find_if(contents.blocks.begin(), contents.blocks.end(),
                                  [&ram](const RamBlock& candidate) { return candidate.name == ram; });
  if (block == contents.blocks.end()) {
    return Status(Code::corrupt, "migration stream: the guest's RAM block '" + ram + "' is not in it");
  }
  if (block->pages != 0) {
    return Status(Code::unsafe, "migration stream: the guest's RAM '" + ram +
                                    "' is in it; start QEMU with share=on for its memory backend");
  }
  std::vector<std::byte> base(stream.begin(), stream.begin() + kHeaderBytes);
  base.insert(base.end(), stream.begin() + static_cast<std::ptrdiff_t>(contents.ram_offset),
              stream.begin() + static_cast<std::ptrdiff_t>(contents.head_bytes));
  return base;
}

Result<std::vector<std::byte>> compose(std::span<const std::byte> base, std::span<const std::byte> device) {
  REMUSD_ASSIGN(const BaseContents contents, inspect(base));
  if (contents.ram_offset != kHeaderBytes || contents.head_bytes != base.size()) {
    return Status(Code::corrupt, "base stream: holds more than the ram sections");
  }
  REMUSD_TRY(check_device_state(device));
  std::vector<std::byte> stream;
  stream.reserve(base.size() + device.size() - kHeaderBytes);
  stream.insert(stream.end(), base.begin(), base.end());
  stream.insert(stream.end(), device.begin() + kHeaderBytes, device.end());
  return stream;
}

}  // namespace remusd::guest::qemu
