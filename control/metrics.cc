// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <mutex>
#include <vector>

namespace remusd::control {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
template <typename Metric>
using Family = prometheus::Family<Metric>;

// Pauses of a millisecond and commits of a few are the rule; seconds are the failures.
const Histogram::BucketBoundaries kSeconds{0.00025, 0.0005, 0.00075, 0.001, 0.00125, 0.0015, 0.002,
                                           0.003,   0.005,  0.0075,  0.01,  0.015,   0.025,  0.05,
                                           0.1,     0.25,   0.5,     1,     2};
const Histogram::BucketBoundaries kPages{1,    4,    16,   64,    128,   256,    512,
                                         1024, 2048, 4096, 16384, 65536, 262144, 1048576};

constexpr std::array<const char*, 7> kPhases{"stop", "scan", "copy", "resume", "encode", "wire", "ack"};

}  // namespace

struct Metrics::Families {
  prometheus::Registry registry;

  Family<Gauge>& gauge(const char* name, const char* help) {
    return BuildGauge().Name(name).Help(help).Register(registry);
  }
  Family<Counter>& counter(const char* name, const char* help) {
    return BuildCounter().Name(name).Help(help).Register(registry);
  }
  Family<Histogram>& histogram(const char* name, const char* help) {
    return BuildHistogram().Name(name).Help(help).Register(registry);
  }

  Family<Gauge>& build_info = gauge("remusd_build_info", "Always 1; the labels tell version and node.");
  Family<Gauge>& memory =
      gauge("remusd_memory_bytes", "Memory of the daemon by kind; shared is mostly guest RAM.");
  Family<Gauge>& memory_limit =
      gauge("remusd_memory_limit_bytes", "Bounds that the settings put on the daemon's buffers, per guest.");

  Family<Gauge>& residue = gauge("remusd_residue_bytes",
                                 "Memory of a guest or replica that is gone, kept for its next first sync.");
  Family<Gauge>& peer_tls = gauge("remusd_peer_tls",
                                  "1 when traffic with other nodes goes through TLS, 0 when "
                                  "it is plain text.");
  Family<Gauge>& expiry = gauge("remusd_certificate_expiry_timestamp_seconds",
                                "When this node's certificate ends, in Unix time.");

  Family<Gauge>& state = gauge("remusd_vm_state", "1 for the state that the guest is in, 0 for all others.");
  Family<Gauge>& primary =
      gauge("remusd_vm_primary", "1 when this node runs the guest, 0 when it is its backup.");
  Family<Gauge>& generation =
      gauge("remusd_owner_generation", "Generation of the right to run, as known here.");
  Family<Gauge>& last_commit =
      gauge("remusd_last_commit_timestamp_seconds", "When the last epoch was acknowledged, in Unix time.");
  Family<Counter>& epochs = counter("remusd_epochs_total",
                                    "Epochs by outcome: committed, or aborted (sealed, never acknowledged).");
  Family<Counter>& reasons =
      counter("remusd_epoch_starts_total",
              "Committed epochs by why they began when they did: interval (on time), output (sooner), late, "
              "slowdown, staging (later).");
  Family<Histogram>& pause =
      histogram("remusd_epoch_pause_seconds", "How long the guest stood still for an epoch.");
  Family<Histogram>& phase = histogram("remusd_epoch_phase_seconds", "How long each phase of an epoch took.");
  Family<Histogram>& commit =
      histogram("remusd_epoch_commit_seconds", "From the start of an epoch's pause to its acknowledgement.");
  Family<Histogram>& dirty =
      histogram("remusd_dirty_pages",
                "Pages copied in the pause of an epoch: dirty, or written so often that nobody asks.");
  Family<Counter>& raw =
      counter("remusd_checkpoint_raw_bytes_total", "Bytes of committed epochs before encoding.");
  Family<Counter>& sent =
      counter("remusd_checkpoint_sent_bytes_total", "Bytes of committed epochs on the wire.");
  Family<Counter>& pages =
      counter("remusd_checkpoint_pages_total",
              "Dirty pages of committed epochs by how they went: whole, as a delta, or same "
              "(the backup had their content, nothing was sent).");
  Family<Gauge>& applied =
      gauge("remusd_applied_epoch", "Newest epoch in the standby's memory (on the backup).");
  Family<Gauge>& held = gauge("remusd_netbuf_held_bytes", "Bytes of the guest's packets held back now.");
  Family<Histogram>& hold = histogram("remusd_netbuf_hold_seconds",
                                      "How long packets were held until their epoch was acknowledged.");
  Family<Counter>& released = counter("remusd_netbuf_released_packets_total",
                                      "Packets of the guest that left after being held or passed.");
  Family<Counter>& stalls =
      counter("remusd_netbuf_stalls_total",
              "Times that reading the guest's packets stopped because the bound was reached.");
  Family<Counter>& dropped = counter("remusd_netbuf_dropped_packets_total",
                                     "Packets dropped by direction: outbound the TAP refused them, inbound "
                                     "the guest did not take them in time.");
  Family<Counter>& discarded =
      counter("remusd_netbuf_discarded_packets_total",
              "Held packets that were thrown away because the right to speak was lost.");
  Family<Gauge>& rtt = gauge("remusd_heartbeat_rtt_seconds", "Round trip of the last answered heartbeat.");
  Family<Histogram>& arbiter =
      histogram("remusd_arbiter_request_seconds", "How long requests to the arbiter took.");
  Family<Counter>& failovers = counter("remusd_failovers_total", "Promotions on this node by reason.");
  Family<Counter>& reprotects =
      counter("remusd_reprotect_attempts_total", "Attempts to protect the guest again without an operator.");
  Family<Gauge>& slow =
      gauge("remusd_backup_slow", "1 while the backup, or the way to it, is slower than the setting allows.");
  Family<Counter>& guest_events = counter(
      "remusd_guest_events_total",
      "What the guest did by itself: rebooted, powered_off, panicked, exited (its hypervisor ended).");
  Family<Gauge>& reprotect_wanted = gauge(
      "remusd_reprotect_wanted", "1 while the guest is to be protected again without an operator, else 0.");
  Family<Gauge>& promote =
      gauge("remusd_promotion_seconds", "From the right to run to the running guest, last time.");
  Family<Gauge>& resync_pages =
      gauge("remusd_resync_pages",
            "Pages of the last first sync that the backup began with, by kind: total, "
            "and matched (they were not sent).");
  Family<Gauge>& resync_sent =
      gauge("remusd_resync_sent_bytes", "Bytes that the first epoch took on the wire, last time.");
  Family<Gauge>& disk_held =
      gauge("remusd_disk_held_bytes", "Changes of the guest's disks that no acknowledged epoch has yet.");
  Family<Counter>& disk_waits = counter(
      "remusd_disk_waits_total", "Times that changes of the guest's disks had to wait for the backup.");
  Family<Counter>& disk_bytes =
      counter("remusd_disk_bytes_total",
              "Bytes of the guest's disks while it was protected, by kind: written by the guest, committed "
              "(each byte once for each epoch), applied (on the backup).");
  Family<Gauge>& disk_sync =
      gauge("remusd_disk_sync_bytes",
            "The last first sync of the guest's disks, by kind: total, copied, sent (on the wire).");
  Family<Gauge>& disk_behind =
      gauge("remusd_replica_behind_bytes",
            "Changes that the backup has committed and not yet brought to its disks.");
  Family<Gauge>& vm_memory =
      gauge("remusd_vm_memory_bytes", "Memory that protecting this guest takes, by kind.");
};

Metrics::Metrics(const std::string& node) : families_(std::make_unique<Families>()) {
  families_->build_info.Add({{"version", REMUSD_VERSION}, {"node", node}}).Set(1);
}
Metrics::~Metrics() = default;

std::unique_ptr<VmMetrics> Metrics::add_vm(const std::string& vm) {
  return std::make_unique<VmMetrics>(*families_, vm);
}

void Metrics::set_limit(const std::string& kind, double bytes) {
  families_->memory_limit.Add({{"kind", kind}}).Set(bytes);
}

void Metrics::set_residue(const std::string& vm, uint64_t bytes) {
  Gauge& gauge = families_->residue.Add({{"vm", vm}});
  gauge.Set(static_cast<double>(bytes));
  if (bytes == 0) families_->residue.Remove(&gauge);
}

void Metrics::set_peer_tls(bool encrypted) {
  families_->peer_tls.Add({}).Set(encrypted ? 1 : 0);
}

void Metrics::set_certificate_expiry(double seconds) {
  families_->expiry.Add({}).Set(seconds);
}

std::string Metrics::text() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    const char* kind = word == "VmRSS:"      ? "resident"
                       : word == "RssAnon:"  ? "anonymous"
                       : word == "RssShmem:" ? "shared"
                                             : nullptr;
    double kib = 0;
    if (kind != nullptr && status >> kib) families_->memory.Add({{"kind", kind}}).Set(kib * 1024);
  }
  return prometheus::TextSerializer().Serialize(families_->registry.Collect());
}

struct VmMetrics::Series {
  Series(Metrics::Families& made_of, const std::string& name) : families(made_of), vm(name) {
    for (const std::string_view word : kStates) states.push_back(&gauge(families.state, "state", word));
    for (const std::string_view reason : kEpochReasons)
      reasons.push_back(&add(families.reasons, {{"reason", std::string(reason)}}));
    for (const char* name_of_phase : kPhases)
      phases.push_back(&histogram(families.phase, kSeconds, name_of_phase));
  }
  ~Series() {
    for (const auto& remove : removers) remove();
  }

  // Adds a series and remembers how to remove it.
  template <typename Metric, typename... More>
  Metric& add(Family<Metric>& family, prometheus::Labels labels, More&&... more) {
    labels.emplace("vm", vm);
    Metric& metric = family.Add(labels, std::forward<More>(more)...);
    removers.emplace_back([&family, &metric] { family.Remove(&metric); });
    return metric;
  }
  Gauge& gauge(Family<Gauge>& family, const char* label, std::string_view value) {
    return add(family, {{label, std::string(value)}});
  }
  Counter& counter(Family<Counter>& family, const char* label, const char* value) {
    return add(family, {{label, value}});
  }
  Histogram& histogram(Family<Histogram>& family, const Histogram::BucketBoundaries& buckets,
                       const char* phase = nullptr) {
    return add(family, phase != nullptr ? prometheus::Labels{{"phase", phase}} : prometheus::Labels{},
               buckets);
  }

  Metrics::Families& families;
  std::string vm;
  std::vector<std::function<void()>> removers;
  std::vector<Gauge*> states;
  std::vector<Histogram*> phases;
  std::vector<Counter*> reasons;  // by EpochReason
  Gauge& primary = add(families.primary, {});
  Gauge& generation = add(families.generation, {});
  Gauge& last_commit = add(families.last_commit, {});
  Counter& committed = counter(families.epochs, "outcome", "committed");
  Counter& aborted = counter(families.epochs, "outcome", "aborted");
  Histogram& pause = histogram(families.pause, kSeconds);
  Histogram& commit = histogram(families.commit, kSeconds);
  Histogram& dirty = histogram(families.dirty, kPages);
  Counter& raw = add(families.raw, {});
  Counter& sent = add(families.sent, {});
  Counter& pages_whole = counter(families.pages, "kind", "whole");
  Counter& pages_delta = counter(families.pages, "kind", "delta");
  Counter& pages_same = counter(families.pages, "kind", "same");
  Gauge& applied = add(families.applied, {});
  Gauge& held = add(families.held, {});
  Histogram& hold = histogram(families.hold, kSeconds);
  Counter& released = add(families.released, {});
  Counter& stalls = add(families.stalls, {});
  Counter& dropped_in = counter(families.dropped, "direction", "inbound");
  Counter& dropped_out = counter(families.dropped, "direction", "outbound");
  Counter& discarded = add(families.discarded, {});
  Gauge& rtt = add(families.rtt, {});
  Histogram& arbiter = histogram(families.arbiter, kSeconds);
  Counter& failover_lost = counter(families.failovers, "reason", "primary_lost");
  Counter& failover_ordered = counter(families.failovers, "reason", "ordered");
  Counter& reprotects = add(families.reprotects, {});
  std::array<Counter*, 4> guest_events{// by guest::EventKind
                                       &counter(families.guest_events, "event", "rebooted"),
                                       &counter(families.guest_events, "event", "powered_off"),
                                       &counter(families.guest_events, "event", "panicked"),
                                       &counter(families.guest_events, "event", "exited")};
  Gauge& slow = add(families.slow, {});
  Gauge& reprotect_wanted = add(families.reprotect_wanted, {});
  Gauge& promote = add(families.promote, {});
  Gauge& resync_total = gauge(families.resync_pages, "kind", "total");
  Gauge& resync_matched = gauge(families.resync_pages, "kind", "matched");
  Gauge& resync_sent = add(families.resync_sent, {});
  Gauge& disk_held = add(families.disk_held, {});
  Counter& disk_waits = add(families.disk_waits, {});
  Counter& disk_written = counter(families.disk_bytes, "kind", "written");
  Counter& disk_committed = counter(families.disk_bytes, "kind", "committed");
  Counter& disk_applied = counter(families.disk_bytes, "kind", "applied");
  Gauge& disk_sync_total = gauge(families.disk_sync, "kind", "total");
  Gauge& disk_sync_copied = gauge(families.disk_sync, "kind", "copied");
  Gauge& disk_sync_sent = gauge(families.disk_sync, "kind", "sent");
  Gauge& disk_behind = add(families.disk_behind, {});
  DisksStatus disks;  // what was already counted; the strand's
  Gauge& memory_all = gauge(families.vm_memory, "kind", "all");
  Gauge& memory_staging = gauge(families.vm_memory, "kind", "staging");
  Gauge& memory_shadow = gauge(families.vm_memory, "kind", "shadow");
  Gauge& memory_link = gauge(families.vm_memory, "kind", "link");

  std::mutex net_mutex;
  netbuf::NetStats net;  // guarded by net_mutex; what was already counted
};

VmMetrics::VmMetrics(Metrics::Families& families, const std::string& vm)
    : series_(std::make_unique<Series>(families, vm)) {}
VmMetrics::~VmMetrics() = default;

void VmMetrics::on_epoch(const EpochSample& sample) {
  Series& s = *series_;
  s.committed.Increment();
  s.reasons[static_cast<size_t>(sample.reason)]->Increment();
  s.pause.Observe(to_seconds(sample.pause));
  s.commit.Observe(to_seconds(sample.commit));
  s.dirty.Observe(static_cast<double>(sample.dirty_pages));
  const std::array<Duration, kPhases.size()> phases{sample.stop,   sample.scan, sample.copy, sample.resume,
                                                    sample.encode, sample.wire, sample.ack};
  for (size_t i = 0; i < phases.size(); ++i) s.phases[i]->Observe(to_seconds(phases[i]));
  // Of the first epoch the sample has only the pages of its pause.
  const uint64_t captured = sample.dirty_pages + sample.precopy_pages;
  const uint64_t spared = std::min(captured, sample.same_pages + sample.delta_pages);
  s.pages_whole.Increment(static_cast<double>(captured - spared));
  s.pages_delta.Increment(static_cast<double>(sample.delta_pages));
  s.pages_same.Increment(static_cast<double>(sample.same_pages));
  s.raw.Increment(static_cast<double>(sample.raw_bytes));
  s.sent.Increment(static_cast<double>(sample.sent_bytes));
  s.last_commit.SetToCurrentTime();
}

void VmMetrics::on_arbiter_request(Duration took) {
  series_->arbiter.Observe(to_seconds(took));
}

void VmMetrics::on_failover(const std::string& reason) {
  (reason == "ordered" ? series_->failover_ordered : series_->failover_lost).Increment();
}

void VmMetrics::on_guest_event(guest::EventKind kind) {
  series_->guest_events[static_cast<size_t>(kind)]->Increment();
}

void VmMetrics::on_reprotect() {
  series_->reprotects.Increment();
}

void VmMetrics::on_aborted(uint64_t count) {
  series_->aborted.Increment(static_cast<double>(count));
}

void VmMetrics::on_net(const netbuf::NetStats& stats) {
  Series& s = *series_;
  const std::lock_guard lock(s.net_mutex);
  const auto count = [](Counter& counter, uint64_t now, uint64_t before) {
    counter.Increment(static_cast<double>(now - before));
  };
  s.held.Set(static_cast<double>(stats.held_bytes));
  count(s.released, stats.released_frames, s.net.released_frames);
  count(s.stalls, stats.stalls_full, s.net.stalls_full);
  count(s.dropped_in, stats.inbound_dropped, s.net.inbound_dropped);
  count(s.dropped_out, stats.outbound_dropped, s.net.outbound_dropped);
  count(s.discarded, stats.discarded_frames, s.net.discarded_frames);
  for (const double seconds : stats.hold_seconds) s.hold.Observe(seconds);
  s.net = stats;
  s.net.hold_seconds.clear();
}

void VmMetrics::reset_net() {
  const std::lock_guard lock(series_->net_mutex);
  series_->net = {};
  series_->held.Set(0);
}

void VmMetrics::on_disks(const DisksStatus& now) {
  Series& s = *series_;
  // A new tap or replica counts from 0 again.
  const auto count = [](Counter& counter, uint64_t new_value, uint64_t before) {
    counter.Increment(static_cast<double>(new_value >= before ? new_value - before : new_value));
  };
  count(s.disk_waits, now.waits, s.disks.waits);
  count(s.disk_written, now.written_bytes, s.disks.written_bytes);
  count(s.disk_committed, now.committed_bytes, s.disks.committed_bytes);
  count(s.disk_applied, now.applied_bytes, s.disks.applied_bytes);
  s.disk_held.Set(static_cast<double>(now.held_bytes));
  s.disk_behind.Set(static_cast<double>(now.behind_bytes));
  s.disk_sync_total.Set(static_cast<double>(now.sync_total_bytes));
  s.disk_sync_copied.Set(static_cast<double>(now.sync_copied_bytes));
  s.disk_sync_sent.Set(static_cast<double>(now.sync_sent_bytes));
  s.disks = now;
}

void VmMetrics::on_status(const GuestStatus& status) {
  Series& s = *series_;
  for (size_t i = 0; i < kStates.size(); ++i) s.states[i]->Set(kStates[i] == status.state ? 1 : 0);
  s.primary.Set(status.role == "primary" && status.state != "stopped" && status.state != "fenced" ? 1 : 0);
  s.generation.Set(static_cast<double>(status.generation));
  on_disks(status.disks);
  s.applied.Set(static_cast<double>(status.applied));
  s.rtt.Set(status.heartbeat_rtt_seconds);
  s.promote.Set(status.promote_ms / 1e3);
  s.resync_total.Set(static_cast<double>(status.resync_pages_total));
  s.resync_matched.Set(static_cast<double>(status.resync_pages_matched));
  s.resync_sent.Set(static_cast<double>(status.resync_sent_bytes));
  s.slow.Set(status.slow ? 1 : 0);
  s.reprotect_wanted.Set(status.reprotect.wanted ? 1 : 0);
  s.memory_all.Set(static_cast<double>(status.memory_bytes));
  s.memory_staging.Set(static_cast<double>(status.staging_used_bytes));
  s.memory_shadow.Set(static_cast<double>(status.shadow_used_bytes));
  s.memory_link.Set(static_cast<double>(status.link_queue_bytes));
}

}  // namespace remusd::control
