// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/promotion.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>
#include <vector>

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

}  // namespace

Result<std::unique_ptr<netbuf::NetBuffer>> connect_network(const std::vector<guest::NicEndpoint>& endpoints,
                                                           const netbuf::NetOptions& options,
                                                           const std::string& vm) {
  std::vector<netbuf::Nic> nics;
  for (const guest::NicEndpoint& endpoint : endpoints) {
    REMUSD_ASSIGN(ScopedFd tap, netbuf::open_tap(endpoint.tap, /*bridge=*/""));
    nics.push_back({endpoint.id, endpoint.mac, endpoint.socket_path, std::move(tap)});
  }
  return netbuf::NetBuffer::start(std::move(nics), options, vm, /*holding=*/false);
}

Result<Promotion> promote(guest::Standby& standby, const Store& store, std::unique_ptr<netbuf::NetBuffer> net,
                          const netbuf::NetOptions& options, const std::string& vm) {
  REMUSD_ASSERT(!store.pending() && store.applied() >= 1, "only a whole epoch is promoted");
  Promotion promotion;
  promotion.net = std::move(net);
  const std::vector<guest::NicEndpoint> endpoints = standby.nics();
  if (!promotion.net) {
    auto connected = connect_network(endpoints, options, vm);
    if (connected.ok()) {
      promotion.net = *std::move(connected);
    } else {
      promotion.network = connected.status();
      REMUSD_ASSIGN(promotion.net, netbuf::NetBuffer::start({}, options, vm, /*holding=*/false));
    }
  }
  for (const guest::NicEndpoint& endpoint : endpoints) {
    if (promotion.network.ok()) promotion.network = plug(endpoint);
  }
  if (!promotion.network.ok()) {
    promotion.network = promotion.network.with_context("the guest runs without its network");
  }
  REMUSD_ASSIGN(promotion.guest, standby.restore_and_run(store.base(), store.device()));
  return promotion;
}

}  // namespace remusd::backup
