// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/handshake.h"

#include <algorithm>

#include "ckpt/fail_point.h"
#include "ckpt/records.h"

namespace remusd::backup {
namespace {

// Small guests: room for their device state, which does not shrink with their memory.
constexpr size_t kStagingFloorBytes = 8u << 20;

constexpr uint64_t kFeatures = ckpt::kFeatureDelta | ckpt::kFeatureSeed | ckpt::kFeatureDisk |
                               ckpt::kFeatureHold | ckpt::kFeatureDiskTell;

size_t default_staging_limit(size_t memory_bytes) {
  return memory_bytes + std::max(memory_bytes / 8, kStagingFloorBytes);
}

ckpt::FrameType expected(int step) {
  constexpr ckpt::FrameType kTypes[] = {ckpt::FrameType::hello, ckpt::FrameType::definition,
                                        ckpt::FrameType::file, ckpt::FrameType::facts};
  return kTypes[step];
}

}  // namespace

Handshake::Handshake(ckpt::Link& link, const Options& options, Admit admit,
                     std::function<void()> disks_changed)
    : link_(link),
      options_(options),
      admit_(std::move(admit)),
      disks_changed_(std::move(disks_changed)),
      files_(options.files_dir) {}

Status Handshake::on_frame(const ckpt::FrameView& frame) {
  if (step_ == Step::refused) return {};
  REMUSD_ASSERT(step_ != Step::done, "the handshake is over");
  const ckpt::FrameType due = expected(static_cast<int>(step_));
  if (frame.type() != due) {
    return Status(Code::corrupt, "handshake: record type " + std::to_string(frame.header.type) +
                                     " came when type " + std::to_string(static_cast<int>(due)) + " was due");
  }
  switch (step_) {
    case Step::hello:
      return on_hello(frame);
    case Step::definition:
      return on_definition(frame);
    case Step::files:
      return on_file(frame);
    default:
      return on_facts(frame);
  }
}

Status Handshake::on_hello(const ckpt::FrameView& frame) {
  fail_point("backup.hello");
  ckpt::Hello theirs;
  REMUSD_TRY(ckpt::decode(frame.body, &theirs));
  if (theirs.generation == 0 || theirs.generation != frame.header.generation) {
    return Status(Code::corrupt, "HELLO record: generation " + std::to_string(theirs.generation) +
                                     " in a frame of generation " + std::to_string(frame.header.generation));
  }
  link_.writer().set_generation(theirs.generation);
  link_.reader().set_generation(theirs.generation);
  vm_ = theirs.vm;
  peer_ = theirs.node;

  ckpt::Hello ours;
  ours.features = kFeatures;
  ours.session = theirs.session;
  ours.generation = theirs.generation;
  ours.node = options_.node;
  ours.vm = theirs.vm;
  ours.software = "remusd " REMUSD_VERSION;
  if (const auto version = ckpt::negotiate(ours, theirs); !version.ok()) return refuse(version.status());
  // Who may speak at all is the certificates' business; what he says of himself must be the same.
  if (link_.secured() && link_.peer_node() != peer_) {
    return refuse(Status(Code::denied,
                         "node '" + link_.peer_node() + "', by its certificate, says that it is '" + peer_ +
                             "'; give each node the certificate that names it " + "(remusd keys issue)"));
  }
  if (admit_) {
    if (const Status status = admit_(vm_, peer_, theirs.generation); !status.ok()) return refuse(status);
  }
  generation_ = theirs.generation;
  features_ = ours.features & theirs.features;
  session_ = theirs.session;
  step_ = Step::definition;
  return send(ckpt::FrameType::hello, ours);
}

Status Handshake::on_definition(const ckpt::FrameView& frame) {
  std::string_view text;
  REMUSD_TRY(ckpt::decode_text(frame.body, &text));
  if (const Status status = files_.open(text, &definition_); !status.ok()) return refuse(status);
  if (definition_.name != vm_) {
    return refuse(
        Status(Code::invalid, "the definition is of guest " + definition_.name + ", the session of " + vm_));
  }
  step_ = files_.complete() ? Step::facts : Step::files;
  return send(ckpt::FrameType::need_files, files_.needs());
}

Status Handshake::on_file(const ckpt::FrameView& frame) {
  ckpt::FilePart part;
  REMUSD_TRY(ckpt::decode(frame.body, &part));
  if (const Status status = files_.add(part); !status.ok()) return refuse(status);
  if (files_.complete()) step_ = Step::facts;
  return {};
}

Status Handshake::on_facts(const ckpt::FrameView& frame) {
  std::string_view text;
  REMUSD_TRY(ckpt::decode_text(frame.body, &text));
  auto facts = guest::facts_from_json(text);
  if (!facts.ok()) return refuse(facts.status());

  files_.localize(&definition_);
  if (const Status status = open_disks(); !status.ok()) return refuse(status.with_context("guest " + vm_));
  auto standby = guest::prepare(definition_, options_.driver);
  if (!standby.ok()) return refuse(standby.status().with_context("prepare the standby of " + vm_));
  standby_ = *std::move(standby);
  std::string all;
  for (const std::string& difference : guest::differences(*facts, standby_->facts())) {
    all += (all.empty() ? "" : "; ") + difference;
  }
  if (!all.empty()) {
    return refuse(Status(Code::unsafe, "node " + options_.node + " cannot stand in for " + vm_ + ": " + all));
  }

  const size_t memory_bytes = standby_->memory().size();
  staging_limit_bytes_ =
      options_.staging_limit_bytes > 0 ? options_.staging_limit_bytes : default_staging_limit(memory_bytes);
  step_ = Step::done;
  fail_point("backup.ready");
  return send(ckpt::FrameType::ready, ckpt::Ready{staging_limit_bytes_, memory_bytes});
}

/// They are served before the standby is there, which connects to them as it starts.
Status Handshake::open_disks() {
  if (definition_.disks.empty()) return {};
  definition_ = guest::of_the_other_host(std::move(definition_));
  if (guest::holds_disks(definition_)) {
    if ((features_ & ckpt::kFeatureHold) == 0)
      return {Code::invalid, "a disk is held, and the primary did not say that it can"};
    if (!options_.may_hold) return {Code::unsafe, "this node keeps no guest whose disks are held"};
    REMUSD_TRY(options_.may_hold(peer_));
  }
  REMUSD_ASSIGN(const std::vector<guest::DiskEndpoint> endpoints,
                guest::disks_of(definition_, options_.driver));
  std::vector<disk::DiskFile> files;
  for (size_t i = 0; i < endpoints.size(); ++i)
    files.push_back({endpoints[i].name, endpoints[i].path, endpoints[i].socket_path,
                     definition_.disks[i].bytes, endpoints[i].read_only, definition_.disks[i].held()});
  disk::DisksOptions options;
  options.limit_bytes = options_.disk_limit_bytes;
  options.journal_path = options_.journals_dir + "/" + vm_ + ".journal";
  options.map_path = options_.journals_dir + "/" + vm_ + ".map";
  options.held_path = options_.journals_dir + "/" + vm_ + ".held";
  disk::ReplicaOptions replica;
  replica.limit_bytes = options_.disk_limit_bytes;
  replica.beyond_bytes = disk::kMaxBeyondBound;
  replica.session = session_;
  replica.generation = generation_;
  REMUSD_ASSIGN(disks_, disk::Disks::open_replica(files, options, replica, disks_changed_));
  return {};
}

template <typename Record>
Status Handshake::send(ckpt::FrameType type, const Record& record) {
  ckpt::Bytes body;
  ckpt::encode(record, &body);
  return link_.append(type, 0, body);
}

Status Handshake::refuse(const Status& why) {
  step_ = Step::refused;
  refusal_ = why;
  if (standby_) {
    const Status destroyed = standby_->destroy();
    standby_.reset();
    disks_.reset();
    if (!destroyed.ok()) refusal_ = Status(why.code(), why.message() + "; " + destroyed.message());
  }
  std::string reason = why.message();
  std::replace(reason.begin(), reason.end(), '\n', ' ');
  return send(ckpt::FrameType::refuse, ckpt::Refuse{why.code(), reason});
}

}  // namespace remusd::backup
