// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What may take long: the question to the arbiter for the right to run, the fence agent, and loading a
// standby while its primary listens for signs of life. Each has a thread of its own, its answer goes to the
// mailbox. One of a kind at a time.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "arbiter/arbiter.h"
#include "backup/mailbox.h"
#include "backup/session.h"

namespace remusd::backup {

class Requests {
 public:
  /// All must outlive it. `took`, which may be empty: how long a request to the arbiter was under way.
  Requests(arbiter::Arbiter& arbiter, const Options& options, Mailbox& mailbox,
           const std::function<void(Duration)>& took)
      : arbiter_(arbiter), options_(options), mailbox_(mailbox), took_(took) {}
  /// Waits for what is still under way; the fence agent is told to stop.
  ~Requests();

  /// Swaps the record of `vm` for `desired`, of the next generation. REQUIRES: the answer before was served.
  void ask_arbiter(const std::string& vm, const arbiter::Record& desired);
  /// REQUIRES: the answer before was served.
  void fence(const std::string& peer);
  /// REQUIRES: what `load` uses is left alone until its answer was served or wait_for_load() returned.
  void load(std::function<Status()> load);
  void wait_for_load();

 private:
  arbiter::Arbiter& arbiter_;
  const Options& options_;
  Mailbox& mailbox_;
  const std::function<void(Duration)>& took_;
  std::thread arbiter_thread_, load_thread_;
  std::jthread fence_thread_;
};

}  // namespace remusd::backup
