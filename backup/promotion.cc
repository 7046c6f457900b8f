// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/promotion.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>
#include <vector>

#include "ckpt/fail_point.h"

namespace remusd::backup {
namespace {

Status plug(const guest::NicEndpoint& endpoint) {
  if (endpoint.bridge.empty()) return {};
  const ScopedFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) return Status::from_errno("socket");
  ifreq member{};
  if (endpoint.bridge.size() >= sizeof member.ifr_name) {
    return Status(Code::invalid, "bridge name '" + endpoint.bridge + "' is too long");
  }
  std::memcpy(member.ifr_name, endpoint.bridge.data(), endpoint.bridge.size());
  member.ifr_ifindex = static_cast<int>(::if_nametoindex(endpoint.tap.c_str()));
  if (::ioctl(control.get(), SIOCBRADDIF, &member) != 0) {
    return Status::from_errno("put TAP " + endpoint.tap + " on bridge " + endpoint.bridge);
  }
  return {};
}

Status plug(const std::vector<guest::NicEndpoint>& endpoints) {
  for (const guest::NicEndpoint& endpoint : endpoints) REMUSD_TRY(plug(endpoint));
  return {};
}

Result<std::unique_ptr<netbuf::NetBuffer>> make_gate(const guest::Standby& standby,
                                                     const netbuf::NetOptions& options, const std::string& vm,
                                                     bool holding) {
  std::vector<netbuf::Nic> nics;
  for (const guest::NicEndpoint& endpoint : standby.nics()) {
    REMUSD_ASSIGN(ScopedFd tap, netbuf::open_tap(endpoint.tap, /*bridge=*/""));
    nics.push_back({endpoint.id, endpoint.mac, endpoint.socket_path, std::move(tap)});
  }
  return netbuf::NetBuffer::start(std::move(nics), options, vm, holding);
}

}  // namespace

void Promotion::connect(guest::Standby& standby, const std::string& vm) {
  if (net_) return;
  auto net = make_gate(standby, options_, vm, /*holding=*/false);
  if (net.ok()) net_ = *std::move(net);
}

Status Promotion::load(guest::Standby& standby, const Store& store, const std::string& vm) {
  REMUSD_ASSERT(!store.pending() && store.applied() >= 1, "only a whole epoch is loaded");
  REMUSD_TRY(fail_point_error("backup.load"));
  if (!net_) {
    // QEMU announces a guest as soon as it is loaded. That must not be heard before it may run.
    REMUSD_ASSIGN(net_, make_gate(standby, options_, vm, /*holding=*/true));
  }
  REMUSD_TRY(standby.load(store.base(), store.device()));
  loaded_ = true;
  // Only once it is known to stand.
  return plug(standby.nics());
}

Result<Promotion::Running> Promotion::run(guest::Standby& standby, const Store& store,
                                          const std::string& vm) {
  REMUSD_ASSERT(!store.pending() && store.applied() >= 1, "only a whole epoch is promoted");
  Running running;
  if (loaded_) {
    REMUSD_ASSIGN(running.guest, standby.run());
    net_->pass();
    running.net = std::move(net_);
    return running;
  }
  if (!net_) {
    auto gate = make_gate(standby, options_, vm, /*holding=*/false);
    running.network = gate.status();
    if (!gate.ok()) gate = netbuf::NetBuffer::start({}, options_, vm, /*holding=*/false);
    REMUSD_ASSIGN(net_, std::move(gate));
  }
  if (running.network.ok()) running.network = plug(standby.nics());
  if (!running.network.ok()) {
    running.network = running.network.with_context("the guest runs without its network");
  }
  REMUSD_ASSIGN(running.guest, standby.restore_and_run(store.base(), store.device()));
  running.net = std::move(net_);
  return running;
}

}  // namespace remusd::backup
