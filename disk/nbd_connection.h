// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One connection of an NBD client. Requests are taken from a buffer that each receive fills as far as it
// goes, and handed to the owner; answers gather and leave together, but for one whose content is in the pipe:
// that leaves alone, and before anything else is taken.
//
//   reading --DISC, end, error, end()--> closing --no job, nothing under way--> finished
//
// Always holds: a job that the owner was handed comes back once, by answer() or drop(). After an error on the
// socket (`broken`) answers go nowhere.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "disk/job.h"
#include "disk/nbd_negotiation.h"
#include "disk/nbd_request.h"
#include "disk/operation.h"
#include "disk/page_pipe.h"

namespace remusd::disk {

class Connection {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    /// A job with room for so much content; null: there is none, waits_for_room is set, and settle() will be
    /// called once there may be.
    virtual Job* admit(Connection* connection, const nbd::Request& request, size_t content) = 0;
    virtual void release(Job* job) = 0;
    /// A request that was checked, with its content, or one that is refused.
    virtual void carry_out(Job* job) = 0;
    virtual void refuse(Job* job, nbd::Error error) = 0;
    /// Wants settle() to be called at the end of this turn.
    virtual void touched(Connection* connection) = 0;
  };

  Connection(ScopedFd socket, Drive* drive, DiskTally* tally, const nbd::Export& served, size_t most_jobs,
             OperationRing* ring, Owner* owner);

  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  Drive* drive() const { return drive_; }
  DiskTally& tally() const { return *tally_; }
  const nbd::Terms& terms() const { return terms_; }
  /// The content of one answer, filled just before it is given.
  PagePipe& pages() { return pages_; }
  void answer(Job* job, nbd::Error error);
  void drop(Job* job);
  /// At the end of a turn: takes up requests where it had to stop, sends what has gathered, reads on.
  void settle();
  /// Ends it; answers that are not sent yet are lost.
  void end();
  bool finished() const { return closing_ && jobs_ == 0 && !receiving_ && !sending_ && said_.empty(); }

  bool waits_for_room = false;  // the owner's: it is in a queue
  bool is_touched = false;      // likewise

 private:
  void received(int result);
  void sent(int result);
  void receive();
  bool answers_first() const;
  // Each: false when it needs more bytes, or room.
  bool take_one();
  bool take_content();
  bool begin_request();
  void send();
  bool sends_pages() const { return out_first_ == out_.size(); }
  ssize_t send_now();
  void send_later();
  bool gather();
  void advance(size_t bytes);
  void fail();
  void drop_answers();
  size_t buffered() const { return end_ - begin_; }
  std::span<const std::byte> buffer() const { return std::span(buffer_).subspan(begin_, buffered()); }

  ScopedFd socket_;
  Drive* drive_;
  DiskTally* tally_;
  OperationRing* ring_;
  Owner* owner_;
  nbd::Negotiation negotiation_;
  nbd::Terms terms_;
  const size_t most_jobs_;

  std::vector<std::byte> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what was received and not taken
  Job* incoming_ = nullptr;     // a write whose content comes
  size_t passing_over_ = 0;     // content of a write that was refused
  size_t jobs_ = 0;             // with the owner, or being sent
  bool receiving_ = false, sending_ = false, closing_ = false, broken_ = false;
  bool full_ = false;  // a request waits in the buffer for earlier ones to be answered
  std::array<iovec, 2> into_{};
  msghdr receive_{};
  Calls<Connection, &Connection::received> receive_operation_{this};

  std::vector<std::byte> said_, saying_;  // of the handshake, before all answers
  std::vector<Job*> answers_;             // in the order in which they leave
  size_t leaving_ = 0;                    // of them, in `out_`
  size_t unsent_bytes_ = 0;               // their content
  std::vector<iovec> out_;                // and behind it, where the last answer is that, what is in `pages_`
  size_t out_first_ = 0;
  PagePipe pages_;
  msghdr send_{};
  Calls<Connection, &Connection::sent> send_operation_{this};
};

}  // namespace remusd::disk
