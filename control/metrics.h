// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The Prometheus series. Names carry the remusd_ prefix and base units; docs/operating.md lists them. All is
// thread-safe.
#pragma once

#include <memory>
#include <string>

#include "ckpt/epoch_sample.h"
#include "control/guest_status.h"
#include "netbuf/net_buffer.h"

namespace remusd::control {

class VmMetrics;

class Metrics {
 public:
  explicit Metrics(const std::string& node);
  ~Metrics();

  /// The series of one guest, which go away with it. Must not outlive the Metrics; one at a time for a name.
  std::unique_ptr<VmMetrics> add_vm(const std::string& vm);
  /// Sets a bound of the daemon, in bytes, e.g. "staging" (per protected guest).
  void set_limit(const std::string& kind, double bytes);
  /// What a guest left here takes, in bytes; 0 ends the series.
  void set_residue(const std::string& vm, uint64_t bytes);
  /// Whether traffic with other nodes is encrypted.
  void set_peer_tls(bool encrypted);
  /// When this node's certificate ends, in Unix time.
  void set_certificate_expiry(double seconds);
  /// Everything in the text format, with the process's own memory as of now.
  std::string text();

 private:
  friend class VmMetrics;
  struct Families;
  std::unique_ptr<Families> families_;
};

class VmMetrics {
 public:
  VmMetrics(Metrics::Families& families, const std::string& vm);
  ~VmMetrics();

  void on_epoch(const EpochSample& sample);
  void on_arbiter_request(Duration took);
  void on_failover(const std::string& reason);  // a name out of a few
  void on_guest_event(guest::EventKind kind);
  /// An automatic protection was tried.
  void on_reprotect();
  /// `count` epochs were sealed but will never be acknowledged.
  void on_aborted(uint64_t count);
  /// Totals and the new hold times as NetBuffer::stats() gives them.
  void on_net(const netbuf::NetStats& stats);
  /// A new NetBuffer: its totals begin at zero again.
  void reset_net();
  void on_status(const GuestStatus& status);

 private:
  void on_disks(const DisksStatus& now);
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace remusd::control
