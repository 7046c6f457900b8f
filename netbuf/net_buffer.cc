// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/net_buffer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "ckpt/thread.h"
#include "netbuf/port.h"

namespace remusd::netbuf {
namespace {

constexpr size_t kMaxNics = 8;
constexpr size_t kMaxHolds = 4096;
constexpr size_t kMaxInjectedFrames = 1024;  // waiting for the net thread
constexpr int kAnnouncements = 5;
constexpr Duration kAnnounceInterval = std::chrono::milliseconds(100);

/// A tag is the session's number above the epoch: it rises from session to session although epochs start
/// again at 1, so a release that belongs to an older session can never free a frame of a newer one.
constexpr int kSessionShift = 48;
constexpr uint64_t kEpochMask = (uint64_t{1} << kSessionShift) - 1;

Result<ScopedFd> connect_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Status(Code::invalid, "network socket path '" + path + "' is empty or too long");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size());
  ScopedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return Status::from_errno("socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Status::from_errno("connect to the guest's network socket " + path);
  }
  return socket;
}

}  // namespace

class NetBuffer::Pump {
 public:
  enum class Mode { passing, holding, shut };

  Pump(std::vector<Port> ports, ScopedFd wake, Mode mode)
      : ports_(std::move(ports)), wake_(std::move(wake)), mode_(mode) {
    holds_.reserve(kMaxHolds);
    thread_ = std::thread([this] {
      begin_thread("net", Urgency::urgent);
      run();
    });
  }
  ~Pump() {
    stop_ = true;
    wake();
    thread_.join();
  }
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  void hold(uint64_t open_epoch) {
    REMUSD_ASSERT(open_epoch > 0 && open_epoch < kEpochMask, "epochs count from 1");
    REMUSD_ASSERT(mode_ == Mode::passing, "a session begins while output passes");
    const uint64_t session = (open_.load() >> kSessionShift) + 1;
    // Frames of the time before, tagged lower, may still leave: they were never held.
    released_ = session << kSessionShift | (open_epoch - 1);
    good_until_ = Time::max();
    open_ = session << kSessionShift | open_epoch;
    mode_ = Mode::holding;
    wake();
  }
  void seal(uint64_t epoch) {
    const uint64_t open = open_.load();
    REMUSD_ASSERT((open & kEpochMask) == epoch, "epochs are sealed one after another");
    open_ = open + 1;
  }
  void release_through(uint64_t epoch, Time good_until) {
    const uint64_t open = open_.load();
    REMUSD_ASSERT(epoch < (open & kEpochMask), "only a sealed epoch can be released");
    good_until_ = good_until;
    released_ = (open & ~kEpochMask) | epoch;
    wake();
  }
  void pass() {
    REMUSD_ASSERT(mode_ != Mode::shut, "a gate that was shut stays shut");
    mode_ = Mode::passing;
    wake();
  }
  void shut() {
    mode_ = Mode::shut;
    wake();
  }
  void watch_output(std::function<void(uint64_t epoch)> waits) {
    const std::lock_guard lock(watch_mutex_);
    output_waits_ = std::move(waits);
  }
  void divert(TakeInput take) {
    const std::lock_guard lock(input_mutex_);
    take_input_ = std::move(take);
  }
  bool input_drained() const {
    return std::all_of(ports_.begin(), ports_.end(), [](const Port& port) { return port.input_read(); });
  }
  bool inject(size_t card, std::span<const std::byte> frame) {
    bool taken = card < ports_.size();
    if (taken) {
      const std::lock_guard lock(input_mutex_);
      taken = injected_.size() < kMaxInjectedFrames;
      if (taken) injected_.emplace_back(card, std::vector<std::byte>(frame.begin(), frame.end()));
    }
    if (!taken) ++not_injected_;
    wake();
    return taken;
  }
  void count_dropped_input(uint64_t frames) {
    if (frames == 0) return;
    not_injected_ += frames;
    wake();
  }
  void announce() {
    announcements_ = kAnnouncements;
    wake();
  }
  NetStats take_stats() {
    const std::lock_guard lock(stats_mutex_);
    NetStats stats = stats_;
    stats.hold_seconds.swap(holds_);
    holds_.reserve(kMaxHolds);
    return stats;
  }

 private:
  void wake() {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then a wake-up is pending anyway.
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
  }

  void run() {
    std::vector<pollfd> polled;
    while (!stop_) {
      for (Port& port : ports_) advance(port);
      publish_stats();

      polled.assign(1, {wake_.get(), POLLIN, 0});
      for (const Port& port : ports_) {
        const short guest = port.guest_events();
        const short outside = port.outside_events();
        polled.push_back({guest != 0 ? port.guest_fd() : -1, guest, 0});
        polled.push_back({outside != 0 ? port.outside_fd() : -1, outside, 0});
      }
      if (::poll(polled.data(), polled.size(), announce_timeout_ms()) < 0) continue;
      if (polled[0].revents != 0) {
        uint64_t count = 0;
        [[maybe_unused]] const ssize_t got = ::read(wake_.get(), &count, sizeof count);
      }
      give_injected();
      for (size_t i = 0; i < ports_.size(); ++i) serve(i, polled[1 + 2 * i], polled[2 + 2 * i]);
    }
  }

  /// Lets out what may leave, and takes in what waited for room, until neither moves. The mode is read after
  /// the frames were: a frame of the time after hold() is then never let out by an older mode.
  void advance(Port& port) {
    while (true) {
      const Mode mode = mode_;
      if (mode == Mode::shut) {
        // What the backup remembers may still be heard; passing may be a mode that was never looked at again.
        port.queue().set_passing(false);
        port.queue().release_through(released_);
        let_out(port);
        port.shut();
        return;
      }
      port.queue().set_passing(mode == Mode::passing);
      port.queue().release_through(released_);
      let_out(port);
      if (!port.stalled() || !port.queue().has_room(kMaxFrameBytes)) return;
      read_guest(port);
    }
  }

  void let_out(Port& port) {
    const std::lock_guard lock(stats_mutex_);
    port.flush(&holds_, kMaxHolds, port.queue().passing() ? Time::max() : good_until_.load());
  }

  void read_guest(Port& port) {
    port.read_guest([this] { return open_.load(); });
    const uint64_t tag = port.queue().newest_tag();
    if (tag <= told_ || mode_ != Mode::holding) return;
    told_ = tag;
    const std::lock_guard lock(watch_mutex_);
    if (output_waits_) output_waits_(tag & kEpochMask);
  }

  void give_injected() {
    std::vector<std::pair<size_t, std::vector<std::byte>>> frames;
    {
      const std::lock_guard lock(input_mutex_);
      frames.swap(injected_);
    }
    for (const auto& [card, frame] : frames) ports_[card].inject(frame);
  }

  void serve(size_t card, const pollfd& guest, const pollfd& outside) {
    Port& port = ports_[card];
    if (guest.revents != 0) {
      read_guest(port);
      port.write_guest();
    }
    if ((outside.revents & (POLLIN | POLLERR | POLLHUP)) == 0) return;
    // The lock is what makes divert() final.
    const std::lock_guard lock(input_mutex_);
    port.read_outside(take_input_ ? [this, card](auto frame) { return take_input_(card, frame); }
                                  : Port::Take());
  }

  /// Sends an announcement when one is due; returns how long poll() may sleep, -1 for no limit.
  int announce_timeout_ms() {
    if (announcements_ <= 0) return -1;
    const Time now = Clock::now();
    if (now >= next_announcement_ || announcements_ == kAnnouncements) {
      for (Port& port : ports_) port.announce();
      next_announcement_ = now + kAnnounceInterval;
      if (--announcements_ <= 0) return -1;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next_announcement_ - now);
    return static_cast<int>(left.count());
  }

  void publish_stats() {
    NetStats stats;
    stats.inbound_dropped = not_injected_;
    for (const Port& port : ports_) {
      const PortCounters& counters = port.counters();
      stats.held_bytes += port.queue().bytes();
      stats.held_frames += port.queue().frames();
      stats.released_frames += counters.released_frames;
      stats.released_bytes += counters.released_bytes;
      stats.inbound_frames += counters.inbound_frames;
      stats.inbound_bytes += counters.inbound_bytes;
      stats.stalls_full += counters.stalls_full;
      stats.inbound_dropped += counters.inbound_dropped;
      stats.outbound_dropped += counters.outbound_dropped;
      stats.discarded_frames += counters.discarded_frames;
    }
    const std::lock_guard lock(stats_mutex_);
    stats_ = std::move(stats);
  }

  std::vector<Port> ports_;  // net thread only
  ScopedFd wake_;
  std::atomic<bool> stop_ = false;
  std::atomic<Mode> mode_;
  std::atomic<uint64_t> open_ = 1;      // tag of frames read from now on
  std::atomic<uint64_t> released_ = 0;  // newest tag that may leave
  std::atomic<Time> good_until_ = Time::max();
  std::atomic<int> announcements_ = 0;  // still to send
  Time next_announcement_{};            // net thread only
  uint64_t told_ = 0;                   // net thread only: the newest tag that was told as waiting
  std::mutex watch_mutex_;
  std::function<void(uint64_t epoch)> output_waits_;  // under watch_mutex_
  std::mutex input_mutex_;
  TakeInput take_input_;                                             // under input_mutex_
  std::vector<std::pair<size_t, std::vector<std::byte>>> injected_;  // under input_mutex_: card, frame
  std::atomic<uint64_t> not_injected_ = 0;                           // frames that no port was given
  std::mutex stats_mutex_;
  NetStats stats_;
  std::vector<double> holds_;
  std::thread thread_;
};

NetBuffer::NetBuffer(std::unique_ptr<Pump> pump) : pump_(std::move(pump)) {}
NetBuffer::~NetBuffer() = default;

Result<std::unique_ptr<NetBuffer>> NetBuffer::start(std::vector<Nic> nics, const NetOptions& options,
                                                    const std::string& vm, bool holding) {
  if (nics.size() > kMaxNics) {
    return Status(Code::invalid,
                  "guest " + vm + " has more than " + std::to_string(kMaxNics) + " network cards");
  }
  const size_t shares = std::max<size_t>(nics.size(), 1);
  if (options.limit_bytes / shares < 2 * kMaxFrameBytes || options.limit_frames / shares == 0) {
    return Status(Code::invalid, "packet buffer of guest " + vm + " is too small: give each network card " +
                                     std::to_string(2 * kMaxFrameBytes) + " bytes or more");
  }
  std::vector<Port> ports;
  for (Nic& nic : nics) {
    REMUSD_ASSERT(nic.outside.valid(), "a card's outside is opened by the caller");
    REMUSD_ASSIGN(const MacAddress mac, parse_mac(nic.mac));
    REMUSD_ASSIGN(ScopedFd guest, connect_unix(nic.socket_path));
    ports.emplace_back(std::move(nic), mac, std::move(guest), options.limit_bytes / shares,
                       options.limit_frames / shares);
  }
  ScopedFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return Status::from_errno("eventfd");
  auto pump = std::make_unique<Pump>(std::move(ports), std::move(wake),
                                     holding ? Pump::Mode::holding : Pump::Mode::passing);
  return std::unique_ptr<NetBuffer>(new NetBuffer(std::move(pump)));
}

void NetBuffer::hold(uint64_t open_epoch) {
  pump_->hold(open_epoch);
}
void NetBuffer::seal(uint64_t epoch) {
  pump_->seal(epoch);
}
void NetBuffer::release_through(uint64_t epoch, Time good_until) {
  pump_->release_through(epoch, good_until);
}
void NetBuffer::pass() {
  pump_->pass();
}
void NetBuffer::shut() {
  pump_->shut();
}
void NetBuffer::watch_output(std::function<void(uint64_t epoch)> waits) {
  pump_->watch_output(std::move(waits));
}
void NetBuffer::divert(TakeInput take) {
  pump_->divert(std::move(take));
}
bool NetBuffer::input_drained() const {
  return pump_->input_drained();
}
bool NetBuffer::inject(size_t card, std::span<const std::byte> frame) {
  return pump_->inject(card, frame);
}
void NetBuffer::count_dropped_input(uint64_t frames) {
  pump_->count_dropped_input(frames);
}
void NetBuffer::announce() {
  pump_->announce();
}
NetStats NetBuffer::stats() {
  return pump_->take_stats();
}

}  // namespace remusd::netbuf
