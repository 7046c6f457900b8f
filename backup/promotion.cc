// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/promotion.h"

#include <utility>
#include <vector>

namespace remusd::backup {

Result<std::unique_ptr<netbuf::NetBuffer>> connect_network(const std::vector<guest::NicEndpoint>& endpoints,
                                                           const netbuf::NetOptions& options,
                                                           const std::string& vm) {
  std::vector<netbuf::Nic> nics;
  for (const guest::NicEndpoint& endpoint : endpoints) {
    REMUSD_ASSIGN(ScopedFd tap, netbuf::open_tap(endpoint.tap, endpoint.bridge));
    nics.push_back({endpoint.id, endpoint.mac, endpoint.socket_path, std::move(tap)});
  }
  return netbuf::NetBuffer::start(std::move(nics), options, vm, /*holding=*/false);
}

Result<Promotion> promote(guest::Standby& standby, const Store& store, const netbuf::NetOptions& options,
                          const std::string& vm) {
  REMUSD_ASSERT(!store.pending() && store.applied() >= 1, "only a whole epoch is promoted");
  auto net = connect_network(standby.nics(), options, vm);
  auto guest = standby.restore_and_run(store.base(), store.device());
  if (!guest.ok()) return guest.status();

  Promotion promotion;
  promotion.guest = *std::move(guest);
  if (!net.ok())
    net = connect_network(promotion.guest->nics(), options, vm);  // what was in the way may be gone
  if (!net.ok()) {
    promotion.network = net.status().with_context("the guest runs without network");
    net = netbuf::NetBuffer::start({}, options, vm, /*holding=*/false);
    if (!net.ok()) return net.status();
  }
  promotion.net = *std::move(net);
  return promotion;
}

}  // namespace remusd::backup
