// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// TLS 1.3 between two nodes, both with a certificate of the same authority: who may speak (TlsContext), and
// one connection's records (TlsSession). No older version, no resumption, no early data: every connection
// proves both identities anew, and the bytes of another one are worth nothing.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "ckpt/certificate.h"
#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

inline constexpr size_t kTlsRecordBytes = 16u << 10;  // of plain text, at most
inline constexpr size_t kTlsRecordOverhead = 22;      // header, type and tag
/// What a session may send besides its records of data: alerts, new keys, its part of the handshake.
inline constexpr size_t kTlsReserveBytes = 16u << 10;
/// How long a handshake may take. A stranger who says nothing is sent away after it.
inline constexpr Duration kTlsPatience = std::chrono::seconds(5);

class TlsSession {
 public:
  /// Takes cipher text for the peer, all of it. False: there is no room, which ends the session.
  using Output = std::function<bool(std::span<const std::byte>)>;
  ~TlsSession();

  void set_output(Output output);

  /// The handshake is done: the peer is who it must be, data may be written.
  bool established() const;
  /// The node that the peer's certificate names, once established.
  const std::string& peer_node() const;
  /// When the handshake must be done.
  Time deadline() const;

  /// Goes on with the handshake, or decrypts into `plain`. Uses up *cipher from its front; what stays does so
  /// because `plain` is full. *got: bytes of plain text. *ended: the peer will send no more. A failing Status
  /// is final; an alert that tells the peer why is with the output then.
  Status receive(std::span<const std::byte>* cipher, std::span<std::byte> plain, size_t* got, bool* ended);
  /// Cuts `plain` into full records; what fills none is kept back for the next call or flush().
  /// REQUIRES: established().
  Status write(std::span<const std::byte> plain);
  /// Sends what was kept back as a short record.
  Status flush();
  /// Bytes kept back.
  size_t pending() const;

  /// For tests: new keys after so many records, instead of after as many as are safe.
  void set_records_per_key(uint64_t records);

  struct State;  // tls_session.h

 private:
  friend class TlsContext;
  explicit TlsSession(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// PEM files: certificates of authorities to trust (more than one while they change), our own certificate
/// (with those between it and an authority, if any) and its key.
struct TlsFiles {
  std::string ca, cert, key;
};

/// Thread-safe. A session keeps what it was made of: reload() is for those that begin later.
class TlsContext {
 public:
  /// Reads and checks the files: the key is readable by its owner only and fits the certificate, which names
  /// `node`, is valid now, and was issued by an authority of `ca`. `not_found` when a file is not there.
  static Result<std::shared_ptr<TlsContext>> load(const TlsFiles& files, const std::string& node);
  ~TlsContext();

  /// Reads the files again. On failure nothing has changed.
  Status reload();
  /// Our own certificate, as loaded last.
  CertificateFacts own() const;

  /// The side that connects; it speaks to node `peer` and nobody else.
  Result<std::unique_ptr<TlsSession>> connect(const std::string& peer, Duration patience = kTlsPatience);
  /// The side that was connected to; it takes any node of the authority.
  Result<std::unique_ptr<TlsSession>> accept(Duration patience = kTlsPatience);

 private:
  struct Loaded;
  TlsContext(TlsFiles files, std::string node);
  static Result<std::shared_ptr<const Loaded>> read(const TlsFiles& files, const std::string& node);
  std::shared_ptr<const Loaded> loaded() const;
  Result<std::unique_ptr<TlsSession>> begin(const std::string& peer, bool connects, Duration patience);

  const TlsFiles files_;
  const std::string node_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Loaded> loaded_;  // guarded by mutex_
};

}  // namespace remusd::ckpt
