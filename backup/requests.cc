// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/requests.h"

#include <system_error>
#include <utility>

#include "ckpt/thread.h"

namespace remusd::backup {

Requests::~Requests() {
  fence_thread_.request_stop();
  wait_for_load();
  if (arbiter_thread_.joinable()) arbiter_thread_.join();
}

void Requests::ask_arbiter(const std::string& vm, const arbiter::Record& desired) {
  if (arbiter_thread_.joinable()) arbiter_thread_.join();
  try {
    arbiter_thread_ = std::thread([this, vm, desired] {
      begin_thread("arbiter");
      const Time asked = Clock::now();
      arbiter::Answer answer =
          arbiter::acquire(arbiter_, vm, desired.generation - 1, desired, asked + options_.arbiter_timeout);
      if (took_) took_(Clock::now() - asked);
      mailbox_.answer(std::move(answer));
    });
  } catch (const std::system_error& error) {
    mailbox_.answer({arbiter::Verdict::unknown, std::nullopt,
                     Status(Code::exhausted, std::string("start the arbiter thread: ") + error.what())});
  }
}

void Requests::fence(const std::string& peer) {
  if (fence_thread_.joinable()) fence_thread_.join();
  try {
    fence_thread_ = std::jthread([this, peer](const std::stop_token& stop) {
      begin_thread("fence");
      mailbox_.fenced(options_.fence(peer, stop));
    });
  } catch (const std::system_error& error) {
    mailbox_.fenced(Status(Code::exhausted, std::string("start the fence thread: ") + error.what()));
  }
}

void Requests::load(std::function<Status()> load) {
  wait_for_load();
  try {
    load_thread_ = std::thread([this, load = std::move(load)] {
      begin_thread("load", Urgency::urgent);
      mailbox_.loaded(load());
    });
  } catch (const std::system_error& error) {
    mailbox_.loaded(Status(Code::exhausted, std::string("start the load thread: ") + error.what()));
  }
}

void Requests::wait_for_load() {
  if (load_thread_.joinable()) load_thread_.join();
}

}  // namespace remusd::backup
