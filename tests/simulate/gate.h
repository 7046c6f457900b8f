// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Output commit for one guest's packets: the real queue (netbuf/epoch_queue.h) behind the verbs, the order of
// steps and the tags of netbuf/net_buffer.cc. What takes a thread there takes a moment here: a packet is read
// some time after the guest sent it, and leaves some time after it may.
#pragma once

#include <deque>
#include <functional>

#include "netbuf/epoch_queue.h"
#include "tests/simulate/guest.h"

namespace remusd::simulate {

class Gate {
 public:
  enum class Mode { passing, holding, shut };
  /// `heard` is called for each packet that leaves, with the tag's session and epoch and whether it passed.
  struct Departure {
    Packet packet;
    bool passed = false;
  };
  Gate(World& world, HostId host, std::function<void(const Departure&)> heard);

  void send(const Packet& packet);  // by the guest
  void hold(uint64_t session);
  void seal(uint64_t epoch);
  void release_through(uint64_t epoch);
  void pass();
  void shut();
  Mode mode() const { return mode_; }

 private:
  void wake();
  void run();

  World& world_;
  const HostId host_;
  std::function<void(const Departure&)> heard_;
  netbuf::EpochQueue queue_;
  std::deque<Packet> socket_;  // sent by the guest, not yet read
  Mode mode_ = Mode::passing;
  uint64_t open_ = 1;  // session << kSessionShift | epoch
  uint64_t released_ = 0;
  uint64_t session_ = 0;      // the checkers' number
  uint64_t epochs_held_ = 0;  // highest epoch released in any session
  bool awake_ = false;
};

}  // namespace remusd::simulate
