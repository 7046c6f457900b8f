// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A few threads that share one job at a time with the thread that gives it out: for work in a pause that is
// worth splitting. Between jobs they sleep; giving one out takes neither a lock nor memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace remusd {

class Crew {
 public:
  static constexpr size_t kMaxParts = 4096;

  /// `helpers` threads named `name` (at most 15 characters) besides the caller of run(); may be 0.
  Crew(size_t helpers, const std::string& name);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  /// Calls job(0) to job(parts - 1), each once, on whichever of the threads is free, and returns when all
  /// have returned. One thread at a time. REQUIRES: parts < kMaxParts; the job does not throw.
  void run(size_t parts, const std::function<void(size_t part)>& job);

 private:
  void help();
  bool take_part(uint64_t* ticket);

  // One word says it all, so that a helper that comes late can never take a part of another job:
  // number of the job << 24 | its parts << 12 | parts taken.
  std::atomic<uint64_t> ticket_ = 0;
  std::atomic<const std::function<void(size_t)>*> job_ = nullptr;
  std::atomic<uint32_t> done_ = 0;  // parts of the job that have returned
  std::atomic<bool> quit_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace remusd
