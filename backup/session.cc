// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/session.h"

#include <system_error>
#include <thread>
#include <utility>

#include "backup/receiver.h"
#include "ckpt/thread.h"

namespace remusd::backup {

class Session::Impl {
 public:
  Impl(std::unique_ptr<ckpt::Link> link, arbiter::Arbiter& arbiter, const Options& options,
       Callbacks callbacks)
      : receiver(std::move(link), arbiter, options, std::move(callbacks)) {}
  ~Impl() {
    if (!thread.joinable()) return;
    receiver.mailbox().end("the daemon ends the session");
    thread.join();
  }

  Receiver receiver;
  std::thread thread;
};

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::start(ScopedFd socket, arbiter::Arbiter& arbiter,
                                                const Options& options, Callbacks callbacks) {
  std::unique_ptr<ckpt::TlsSession> tls;
  if (options.tls != nullptr) {
    REMUSD_ASSIGN(tls, options.tls->accept());
  }
  // The handshake goes on with the receive thread's waits: a stranger who stalls keeps nobody else waiting.
  REMUSD_ASSIGN(auto link, ckpt::Link::adopt(std::move(socket), options.link, std::move(tls)));
  auto impl = std::make_unique<Impl>(std::move(link), arbiter, options, std::move(callbacks));
  try {
    impl->thread = std::thread([receiver = &impl->receiver] {
      begin_thread("recv", Urgency::urgent);
      receiver->run();
    });
  } catch (const std::system_error& error) {
    return Status(Code::exhausted, std::string("start the receive thread: ") + error.what());
  }
  return std::unique_ptr<Session>(new Session(std::move(impl)));
}

Status Session::may_take_over(const std::string& what) const {
  const Snapshot now = snapshot();
  switch (now.state) {
    case State::handshake:
    case State::syncing:
      return Status(Code::unsafe, what + " of " + now.vm +
                                      " refused: no epoch is committed here yet; wait until it is protected");
    case State::promoted:
      return Status(Code::exists, what + " of " + now.vm + " refused: it already runs here");
    case State::ended:
    case State::failed:
      return Status(Code::unsafe,
                    what + " of " + now.vm + " refused: its session has ended (" + now.end.message() + ")");
    default:
      return {};
  }
}

Status Session::order_failover() {
  REMUSD_TRY(may_take_over("failover"));
  impl_->receiver.mailbox().order_failover();
  return {};
}

Status Session::order_switchover() {
  REMUSD_TRY(may_take_over("switchover"));
  if (const State state = snapshot().state; state != State::standby) {
    return Status(Code::unsafe, "switchover refused in state " + std::string(to_string(state)) +
                                    ": the pair is not whole; see 'remusd failover'");
  }
  impl_->receiver.mailbox().order_switchover();
  return {};
}

Status Session::force_failover() {
  REMUSD_TRY(may_take_over("failover --force"));
  impl_->receiver.mailbox().force();
  return {};
}

void Session::end(const std::string& reason) {
  impl_->receiver.mailbox().end(reason);
}

Snapshot Session::snapshot() const {
  return impl_->receiver.snapshot();
}

}  // namespace remusd::backup
