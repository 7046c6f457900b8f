// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What an NBD client may send: the handshake, then requests, all from one input. The first byte says in what
// pieces it comes and whether the disk is read-only.
#include "disk/nbd_negotiation.h"
#include "disk/nbd_request.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using disk::nbd::Big;
using disk::nbd::Command;
using disk::nbd::Error;
using disk::nbd::Negotiation;
using disk::nbd::Option;
using disk::nbd::OptionHead;
using disk::nbd::Request;
using disk::nbd::RequestHead;

constexpr uint64_t kDisk = 1 << 20;
const char* const kName = "disk0";
/// The longest answers are to options that are understood: three heads with what they tell.
constexpr size_t kMaxAnswer = 256;

/// Takes the handshake's part of `bytes`; returns how much that was.
size_t haggle(View bytes, size_t piece, Negotiation* server) {
  Bytes out;
  size_t taken = 0, shown = 0;
  while (shown < bytes.size() && server->state() < Negotiation::State::transmission) {
    shown = std::min(bytes.size(), shown + piece);
    const size_t before = out.size();
    const size_t now = server->take(bytes.subspan(taken, shown - taken), &out);
    REMUSD_ASSERT(now <= shown - taken, "only what came is taken");
    REMUSD_ASSERT(now > 0 || out.size() == before, "nothing is said to what has not come whole");
    REMUSD_ASSERT(out.size() - before <= (now / sizeof(OptionHead) + 1) * kMaxAnswer, "answers are short");
    taken += now;
    REMUSD_ASSERT(server->state() == Negotiation::State::ended ||
                      server->state() == Negotiation::State::transmission ||
                      shown - taken < disk::nbd::kMaxOptionBytes + sizeof(OptionHead),
                  "an option that is kept waiting is not too long");
  }
  REMUSD_ASSERT(!server->allocation() || server->structured(), "contexts need structured replies");
  return taken;
}

/// What holds of one that passed, or of its answer.
void look_at(const Request& request, const disk::nbd::Terms& terms) {
  const Error error = disk::nbd::check(request, terms);
  const bool content = request.command == Command::read || request.command == Command::block_status;
  if (error != Error::none) {
    const auto head = disk::nbd::ReplyHead::plain(request, terms, error).bytes();
    REMUSD_ASSERT(head.size() == (content && terms.structured ? 26u : 16u), "a refusal is a head");
    return;
  }
  REMUSD_ASSERT(!request.changes() || !terms.read_only, "a read-only disk stays as it is");
  if (request.command == Command::disconnect) return;
  const bool flush = request.command == Command::flush;
  REMUSD_ASSERT(flush == (request.bytes == 0), "all but flushes have a length");
  REMUSD_ASSERT(request.end() >= request.offset && request.end() <= kDisk, "it lies within the disk");
  REMUSD_ASSERT(request.command != Command::block_status || terms.allocation, "a status has its context");
  if (request.command == Command::read) {
    const auto head = disk::nbd::ReplyHead::data(request, terms).bytes();
    REMUSD_ASSERT(head.size() == (terms.structured ? 28u : 16u), "a read's head");
  }
}

void run(View bytes) {
  Input input(bytes);
  const uint8_t how = input.number();
  const bool read_only = (how & 1) != 0;
  const size_t piece = how < 128 ? SIZE_MAX / 2 : size_t{how} - 127;
  View rest = input.rest();
  Negotiation server({kName, kDisk, read_only});
  rest = rest.subspan(haggle(rest, std::min(piece, rest.size() + 1), &server));
  if (server.state() != Negotiation::State::transmission) return;
  const disk::nbd::Terms terms{kDisk, read_only, server.structured(), server.allocation()};
  while (rest.size() >= sizeof(RequestHead)) {
    const auto request = disk::nbd::parse(rest);
    if (!request) return;
    REMUSD_ASSERT(request->payload_bytes() <= disk::nbd::kMaxPayload, "what is received is bounded");
    look_at(*request, terms);
    rest = rest.subspan(sizeof(RequestHead));
    rest = rest.subspan(std::min(rest.size(), request->payload_bytes()));
  }
}

void option(Option option, View data, Bytes* out) {
  OptionHead head;
  head.option = static_cast<uint32_t>(option);
  head.bytes = static_cast<uint32_t>(data.size());
  disk::nbd::put(head, out);
  out->insert(out->end(), data.begin(), data.end());
}

void text(std::string_view words, Bytes* out) {
  disk::nbd::put(Big<uint32_t>(static_cast<uint32_t>(words.size())), out);
  const View view = bytes_of(words);
  out->insert(out->end(), view.begin(), view.end());
}

void request(Command command, uint16_t flags, uint64_t offset, uint32_t bytes, Bytes* out) {
  RequestHead head;
  head.type = static_cast<uint16_t>(command);
  head.flags = flags;
  head.offset = offset;
  head.bytes = bytes;
  disk::nbd::put(head, out);
  if (command == Command::write) out->resize(out->size() + bytes);
}

void requests(Bytes* out) {
  namespace nbd = disk::nbd;
  request(Command::read, nbd::kDf, 0, 4096, out);
  request(Command::write, nbd::kFua, kDisk - 16, 16, out);
  request(Command::flush, 0, 0, 0, out);
  request(Command::trim, 0, 4096, 4096, out);
  request(Command::cache, 0, 0, 4096, out);
  request(Command::write_zeroes, nbd::kNoHole, 0, 1 << 16, out);
  request(Command::block_status, nbd::kReqOne, 0, kDisk, out);
  request(Command::disconnect, 0, 0, 0, out);
}

void seeds(Seeds* out) {
  for (const uint8_t how : std::initializer_list<uint8_t>{0, 1, 130, 255}) {
    Bytes input{std::byte{how}};
    disk::nbd::put(Big<uint32_t>(disk::nbd::kFixedNewstyle | disk::nbd::kNoZeroes), &input);
    option(Option::list, {}, &input);
    option(Option::starttls, {}, &input);
    option(Option::structured_reply, {}, &input);
    for (const Option which : {Option::list_meta_context, Option::set_meta_context}) {
      Bytes contexts;
      text(kName, &contexts);
      disk::nbd::put(Big<uint32_t>(1), &contexts);
      text(disk::nbd::kAllocationContext, &contexts);
      option(which, contexts, &input);
    }
    for (const Option which : {Option::info, Option::go}) {
      Bytes info;
      text(kName, &info);
      disk::nbd::put(Big<uint16_t>(2), &info);
      disk::nbd::put(Big<uint16_t>(1), &info);
      disk::nbd::put(Big<uint16_t>(3), &info);
      option(which, info, &input);
    }
    requests(&input);
    out->add(input);

    Bytes old{std::byte{how}};
    disk::nbd::put(Big<uint32_t>(0), &old);
    option(Option::export_name, {}, &old);
    requests(&old);
    out->add(old);
  }
  Bytes abort{std::byte{0}};
  disk::nbd::put(Big<uint32_t>(disk::nbd::kFixedNewstyle), &abort);
  option(static_cast<Option>(77), Bytes(disk::nbd::kMaxOptionBytes / 16), &abort);
  option(Option::abort, {}, &abort);
  out->add(abort);
  out->words = {"IHAVEOPT",
                "disk0",
                "base:allocation",
                "base:",
                std::string("\x25\x60\x95\x13", 4),
                std::string("\0\0\0\x07", 4),
                std::string("\0\0\0\x08", 4),
                std::string("\0\0\0\x0a", 4)};
}

REMUSD_FUZZ_TARGET(nbd, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
