// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/protection.h"

#include <sys/random.h>

#include "primary/handshake.h"
#include "primary/ship.h"

namespace remusd::primary {
namespace {

ckpt::SessionId make_session_id() {
  ckpt::SessionId id;
  const ssize_t got = ::getrandom(id.data(), id.size(), 0);
  REMUSD_ASSERT(got == static_cast<ssize_t>(id.size()), "16 bytes of randomness are never refused");
  return id;
}

Status check_options(const Options& options) {
  if (options.node.empty()) return Status(Code::invalid, "protect: this node has no name");
  if (options.node == options.peer) return Status(Code::invalid, "protect: the peer is this node itself");
  const PaceOptions& pace = options.pace;
  if (pace.interval <= Duration::zero() || pace.epoch_min <= Duration::zero() ||
      options.heartbeat_interval <= Duration::zero() || options.heartbeat_lost < 1) {
    return Status(Code::invalid, "protect: epoch and heartbeat intervals must be positive");
  }
  if (pace.latency_target < Duration::zero() || !(pace.max_slowdown >= 0 && pace.max_slowdown <= 1)) {
    return Status(Code::invalid,
                  "protect: a latency target is not negative, a slow-down lies within 0 and 1");
  }
  if (options.ack_timeout <= Duration::zero() || options.slow.bound <= Duration::zero()) {
    return Status(Code::invalid, "protect: the bounds for a slow backup must be positive");
  }
  if (options.staging_bytes < kMinChunks * kChunkDataBytes) {
    return Status(Code::invalid,
                  "protect: staging_bytes must be at least " + std::to_string(kMinChunks * kChunkDataBytes));
  }
  if (options.shadow_bytes > 0 && options.shadow_bytes < kPageSize) {
    return Status(Code::invalid, "protect: shadow_bytes must be 0 or at least " + std::to_string(kPageSize));
  }
  if (options.link.send_queue_bytes < 2 * size_t{ckpt::kMaxBodyBytes}) {
    return Status(Code::invalid, "protect: the send queue must hold at least " +
                                     std::to_string(2 * size_t{ckpt::kMaxBodyBytes}) + " bytes");
  }
  return Status::ok_status();
}

}  // namespace

class Protection::Impl {
 public:
  Impl(guest::Guest& guest, netbuf::NetBuffer& net, arbiter::Arbiter& arbiter, Ship::Config config)
      : arbiter_timeout_(config.options.arbiter_timeout), ship_(guest, net, arbiter, std::move(config)) {}

  ~Impl() {
    // In order if that can be had in bounded time; when the arbiter does not answer, output stays held.
    constexpr Duration kGrace = std::chrono::seconds(2);
    ship_.unprotect("protection ends on this side");
    (void)ship_.wait_final(Clock::now() + arbiter_timeout_ + kGrace);
    ship_.quit();
  }

  Duration arbiter_timeout_;
  Ship ship_;
};

Result<std::unique_ptr<Protection>> Protection::start(guest::Guest& guest,
                                                      const guest::Definition& definition,
                                                      netbuf::NetBuffer& net, arbiter::Arbiter& arbiter,
                                                      const Options& options, Callbacks callbacks) {
  REMUSD_TRY(check_options(options));
  Ship::Config config;
  config.vm = definition.name;
  config.options = options;
  Handshake::Config& handshake = config.handshake;
  REMUSD_ASSIGN(handshake.files, read_boot_files(definition));
  handshake.definition = definition_body(definition, handshake.files);
  handshake.facts = guest::to_json(guest.facts());
  handshake.peer = options.peer;
  handshake.memory_bytes = guest.memory().size();
  handshake.hello.features = (options.shadow_bytes > 0 ? ckpt::kFeatureDelta : 0) |
                             (options.seed ? ckpt::kFeatureSeed : 0) |
                             (options.disks != nullptr ? ckpt::kFeatureDisk | ckpt::kFeatureDiskTell : 0);
  handshake.hello.features_required = options.disks != nullptr ? ckpt::kFeatureDisk : 0;
  if (guest::holds_disks(definition)) {
    handshake.hello.features |= ckpt::kFeatureHold;
    handshake.hello.features_required |= ckpt::kFeatureHold;
  }
  handshake.hello.session = make_session_id();
  handshake.hello.node = options.node;
  handshake.hello.vm = definition.name;
  handshake.hello.software = "remusd " REMUSD_VERSION;

  const Time began = Clock::now();
  auto won = arbiter::win_next_generation(arbiter, definition.name, options.node, options.peer,
                                          began + options.arbiter_timeout);
  if (callbacks.on_arbiter_request) callbacks.on_arbiter_request(Clock::now() - began);
  if (!won.ok()) return won.status().with_context("protect " + definition.name);
  config.generation = *won;
  handshake.hello.generation = config.generation;
  config.callbacks = std::move(callbacks);
  auto impl = std::make_unique<Impl>(guest, net, arbiter, std::move(config));
  REMUSD_TRY(impl->ship_.start());
  return std::unique_ptr<Protection>(new Protection(std::move(impl)));
}

Protection::Protection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Protection::~Protection() = default;

void Protection::unprotect(const std::string& reason) {
  impl_->ship_.unprotect(reason);
}
void Protection::order_failover() {
  impl_->ship_.order(ckpt::OrderKind::failover);
}
void Protection::order_switchover() {
  impl_->ship_.order(ckpt::OrderKind::switchover);
}
void Protection::verify_disks() {
  impl_->ship_.verify_disks();
}
void Protection::force() {
  impl_->ship_.force();
}
void Protection::join() {
  impl_->ship_.quit();
}
Snapshot Protection::snapshot() const {
  return impl_->ship_.snapshot();
}

}  // namespace remusd::primary
