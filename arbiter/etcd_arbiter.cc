// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Records in etcd. A swap reads the key, compares the generation here, and puts the new record in a
// transaction that demands that the key is still at the revision which was read.
//
// What makes it right when answers are lost: a request that nobody answers may be carried out now, later or
// never. It names a revision, and revisions of a key only rise, so once the key is seen at another one the
// request is void. Until then it may be sent again, to any member: only one copy can take effect, and its
// nonce tells that it did. (A key that was removed begins at 0 again: docs/operating.md says when that is
// safe.)
#include "arbiter/arbiter.h"
#include "arbiter/etcd_client.h"
#include "arbiter/etcd_codec.h"
#include "arbiter/record_json.h"
#include "ckpt/fail_point.h"

namespace remusd::arbiter {
namespace {

constexpr int kMaxRounds =
    4;  // of swaps that found the same generation at another revision: somebody edits it

class EtcdArbiter final : public Arbiter {
 public:
  explicit EtcdArbiter(std::unique_ptr<EtcdClient> client) : client_(std::move(client)) {}

  Result<std::optional<Record>> read(const std::string& vm, Time deadline) override {
    REMUSD_TRY(check_guest_name(vm));
    const std::string key = etcd_owner_key(vm);
    EtcdClient::Call call(*client_, deadline);
    EtcdAnswer answer;
    bool repeated = false;
    REMUSD_TRY(range(call, key, &answer, &repeated));
    return record_of(answer, vm, key);
  }

  Answer compare_and_swap(const std::string& vm, uint64_t expected_generation, const Record& desired,
                          Time deadline) override {
    if (Status status = check_guest_name(vm); !status.ok()) return unknown(std::move(status));
    const std::string key = etcd_owner_key(vm);
    const std::string value = encode_record(desired);
    EtcdClient::Call call(*client_, deadline);
    EtcdAnswer answer;
    bool repeated = false;
    if (Status status = range(call, key, &answer, &repeated); !status.ok()) return unknown(std::move(status));
    bool may_have_committed = false;  // a request of this call whose answer was not had
    for (int round = 0; round < kMaxRounds; ++round) {
      const Result<std::optional<Record>> current = record_of(answer, vm, key);
      if (!current.ok()) return unknown(current.status());
      if (auto settled = judge(*current, expected_generation, desired, may_have_committed)) return *settled;
      const std::string request =
          etcd_swap_request(key, answer.entry ? answer.entry->mod_revision : 0, value);
      if (Status lost = fail_point_error("arbiter.before_install"); !lost.ok()) return unknown(lost);
      Status status = swap(call, key, request, &answer, &repeated);
      may_have_committed = may_have_committed || repeated;
      if (!status.ok()) return {Verdict::unknown, *current, std::move(status)};
      if (!answer.swapped) continue;
      if (Status lost = fail_point_error("arbiter.installed"); !lost.ok()) return unknown(lost);
      return {Verdict::won, desired, {}};
    }
    return unknown({Code::unavailable, "the record of " + vm + " is being changed without a new generation"});
  }

  std::string describe() const override { return client_->description(); }

 private:
  static Answer unknown(Status why) { return {Verdict::unknown, std::nullopt, std::move(why)}; }

  /// What a record that was read says of the call; nullopt: the expected generation stands, so swap.
  static std::optional<Answer> judge(const std::optional<Record>& current, uint64_t expected,
                                     const Record& desired, bool may_have_committed) {
    const uint64_t generation = current ? current->generation : 0;
    if (generation == expected) return std::nullopt;
    if (current && *current == desired) return Answer{Verdict::won, current, {}};
    // Each generation is installed once. If the next one is another's, ours was not; if the record has gone
    // further, ours may have been installed and superseded, which a new call can tell as lost.
    if (may_have_committed && generation != expected + 1) {
      return Answer{
          Verdict::unknown, current,
          Status(Code::unavailable, "the record has changed more than once since it was asked for")};
    }
    return Answer{Verdict::lost, current, {}};
  }

  static Result<std::optional<Record>> record_of(const EtcdAnswer& answer, const std::string& vm,
                                                 const std::string& key) {
    if (!answer.entry) return std::optional<Record>();
    REMUSD_ASSIGN(Record record, decode_record(answer.entry->value, key + " (guest " + vm + ")"));
    return std::optional<Record>(std::move(record));
  }

  Status range(EtcdClient::Call& call, const std::string& key, EtcdAnswer* out, bool* repeated) {
    return post(call, kEtcdRange, etcd_range_request(key), key, decode_etcd_range, out, repeated);
  }
  Status swap(EtcdClient::Call& call, const std::string& key, const std::string& request, EtcdAnswer* out,
              bool* repeated) {
    return post(call, kEtcdTxn, request, key, decode_etcd_swap, out, repeated);
  }
  template <typename Decode>
  Status post(EtcdClient::Call& call, const char* target, const std::string& request, const std::string& key,
              Decode decode, EtcdAnswer* out, bool* repeated) {
    const auto take = [&](std::string_view body) -> Status {
      REMUSD_ASSIGN(*out, decode(body, key));
      return client_->check_cluster(out->cluster_id);
    };
    return call.post(target, request, take, repeated);
  }

  const std::unique_ptr<EtcdClient> client_;
};

}  // namespace

Result<std::unique_ptr<Arbiter>> open_etcd_arbiter(const EtcdOptions& options) {
  try {
    REMUSD_ASSIGN(std::unique_ptr<EtcdClient> client, EtcdClient::open(options));
    return std::unique_ptr<Arbiter>(new EtcdArbiter(std::move(client)));
  } catch (const std::exception& error) {  // A thread, memory or OpenSSL's own set-up is refused.
    return Status(Code::io, std::string("open the etcd arbiter: ") + error.what());
  }
}

}  // namespace remusd::arbiter
