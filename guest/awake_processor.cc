// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/awake_processor.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <utility>

namespace remusd::guest {
namespace {

constexpr std::string_view kRecordSuffix = ".awake";
constexpr std::string_view kNoLatency = "n/a";  // "0" is its opposite: no wish at all

ScopedFd open_setting(const std::string& processors, int processor) {
  const std::string path =
      processors + "/cpu" + std::to_string(processor) + "/power/pm_qos_resume_latency_us";
  return ScopedFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
}

/// Its line, or nothing.
std::string_view read_setting(int setting, std::array<char, 32>* text) {
  const ssize_t got = ::pread(setting, text->data(), text->size(), 0);
  const std::string_view line(text->data(), got > 0 ? static_cast<size_t>(got) : 0);
  return line.substr(0, line.find('\n'));
}

bool write_setting(int setting, std::string_view value) {
  return ::pwrite(setting, value.data(), value.size(), 0) == static_cast<ssize_t>(value.size());
}

}  // namespace

AwakeProcessor::AwakeProcessor(std::string record, std::string processors)
    : record_(std::move(record)), processors_(std::move(processors)) {}

AwakeProcessor::~AwakeProcessor() {
  choose(-1);
}

AwakeProcessor& AwakeProcessor::operator=(AwakeProcessor&& other) noexcept {
  std::swap(record_, other.record_);
  std::swap(processors_, other.processors_);
  std::swap(processor_, other.processor_);
  std::swap(setting_, other.setting_);
  std::swap(before_, other.before_);
  std::swap(held_, other.held_);
  return *this;
}

void AwakeProcessor::choose(int processor) {
  release();
  std::array<char, 32> text{};
  if (processor == processor_ && setting_ && read_setting(setting_.get(), &text) == before_) return;
  if (processor_ >= 0) ::unlink(record_.c_str());
  processor_ = -1;
  if (processor < 0) return setting_.reset();
  setting_ = open_setting(processors_, processor);
  if (!setting_) return;
  before_ = read_setting(setting_.get(), &text);
  if (before_.empty() || before_ == kNoLatency) return;
  // Told before it is done.
  std::ofstream record(record_, std::ios::trunc);
  record << processor << ' ' << before_ << '\n';
  record.close();
  if (record) processor_ = processor;
}

void AwakeProcessor::hold() {
  std::array<char, 32> text{};
  if (processor_ < 0 || held_ || read_setting(setting_.get(), &text) != before_) return;
  held_ = write_setting(setting_.get(), kNoLatency);
}

void AwakeProcessor::release() {
  if (std::exchange(held_, false)) (void)write_setting(setting_.get(), before_);
}

void give_back_processors(const std::string& directory, const std::string& processors) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(directory, none)) {
    if (!file.path().filename().string().ends_with(kRecordSuffix)) continue;
    std::ifstream record(file.path());
    int processor = -1;
    std::string before;
    if (record >> processor >> before && processor >= 0) {
      const ScopedFd setting = open_setting(processors, processor);
      std::array<char, 32> text{};
      if (setting && read_setting(setting.get(), &text) == kNoLatency)
        (void)write_setting(setting.get(), before);
    }
    ::unlink(file.path().c_str());
  }
}

}  // namespace remusd::guest
