// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// POST to whichever member of a cluster answers, within a deadline. It decides nothing about records.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arbiter/etcd_endpoint.h"
#include "arbiter/etcd_tls.h"

namespace remusd::arbiter {

class EtcdConnection;

class EtcdClient {
 public:
  static Result<std::unique_ptr<EtcdClient>> open(const EtcdOptions& options);

  /// One caller's requests, one after the other, on one connection while that works. Not thread-safe; as many
  /// calls as one likes at the same time.
  class Call {
   public:
    Call(EtcdClient& client, Time deadline);
    ~Call();

    /// Takes an answer; a failure makes the next endpoint be asked.
    using Take = std::function<Status(std::string_view body)>;
    /// Asks the endpoints in turn, beginning with the one that answered last, each for its share of the time,
    /// until `take` is content. The same request may therefore have reached several members when this
    /// returns: `repeated` tells that one which was given up, or whose answer was not understood, may have
    /// been carried out, or may yet be. A failure names what each endpoint said; `timed_out` when one did not
    /// answer.
    Status post(const char* target, const std::string& body, const Take& take, bool* repeated);

   private:
    Status attempt(size_t number, bool last, Time limit, const char* target, const std::string& body,
                   const Take& take, bool* sent);
    EtcdClient& client_;
    const Time deadline_;
    std::unique_ptr<EtcdConnection> connection_;
    size_t connected_to_ = 0;
  };

  /// All answers must come from one cluster: two would be two arbiters.
  Status check_cluster(uint64_t id);
  const std::string& description() const { return description_; }

 private:
  EtcdClient(std::vector<EtcdEndpoint> endpoints, std::unique_ptr<EtcdTls> tls);

  const std::vector<EtcdEndpoint> endpoints_;
  const std::unique_ptr<EtcdTls> tls_;
  std::string description_;
  EtcdAddresses addresses_;
  std::atomic<size_t> preferred_ = 0;
  std::atomic<uint64_t> cluster_ = 0;  // 0: not known yet
};

}  // namespace remusd::arbiter
