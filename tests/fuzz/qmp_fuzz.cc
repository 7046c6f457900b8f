// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The QMP client, with a QEMU that has said everything beforehand and closed its side: a list of calls, then
// all that it says.
#include "guest/qemu/qmp.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

using guest::qemu::Qmp;

constexpr std::chrono::seconds kPatience{20};  // never needed: all is said, and the socket is at its end
constexpr size_t kMostCalls = 8;

Status call(Qmp& qmp, uint8_t which, int quiet) {
  switch (which % 8) {
    case 0:
      return qmp.call("query-status").status();
    case 1:
      return qmp.call("xen-save-devices-state", {{"filename", "/dev/fdset/1"}}, quiet).status();
    case 2:
      return qmp.await_ok();
    case 3:
      return qmp.await_stop(quiet);
    case 4:
      return qmp.await_ok(quiet, [] { return Status(Code::io, "nothing comes here"); });
    case 5:
      return qmp.drain();
    case 6:
      qmp.watch("MIGRATION");
      return qmp.await_watched(Clock::now() + kPatience).status();
    default:
      REMUSD_ASSERT(qmp.take_events().size() <= Qmp::kMaxEvents, "events are bounded");
      return {};
  }
}

void run(View bytes) {
  Input input(bytes);
  const View calls = input.take(input.number() % (kMostCalls + 1));
  auto [ours, qemus] = socket_pair();
  static const auto quiet = socket_pair();
  say_and_end(qemus.get(), input.rest());
  auto qmp = Qmp::adopt(std::move(ours), "fuzz", kPatience, kPatience);
  if (!qmp.ok()) return require_reason(qmp.status());
  for (const std::byte which : calls) {
    const Status before = (*qmp)->broken();
    const Status status = call(**qmp, static_cast<uint8_t>(which), quiet.first.get());
    if (!status.ok()) require_reason(status);
    REMUSD_ASSERT(status.code() != Code::timed_out, "what has come is read, and the end is seen");
    REMUSD_ASSERT(before.ok() || status.ok() || status.message().ends_with(before.message()),
                  "a broken monitor stays broken, for the same reason");
  }
}

void seeds(Seeds* out) {
  const std::string greeting =
      R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})"
      "\r\n";
  const std::string ok = R"({"return": {}})"
                         "\r\n";
  const std::string stop = R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})"
                           "\r\n";
  const std::string reset =
      R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESET", "data": {"guest": true}})"
      "\r\n";
  const std::string migration = R"({"event": "MIGRATION", "data": {"status": "active"}})"
                                "\r\n";
  const std::string error = R"({"error": {"class": "CommandNotFound", "desc": "no such"}})"
                            "\r\n";
  const auto seed = [&](std::initializer_list<uint8_t> calls, const std::string& said) {
    Bytes input{static_cast<std::byte>(calls.size())};
    for (const uint8_t which : calls) input.push_back(std::byte{which});
    out->add_text(said, std::move(input));
  };
  seed({0, 1}, greeting + ok +
                   R"({"return": {"status": "running", "singlestep": false}})"
                   "\r\n" +
                   error);
  seed({3, 4, 7}, greeting + ok + stop + reset + ok);
  seed({6, 5}, greeting + ok + migration + reset);
  seed({5, 2}, greeting + ok + stop + "\n" + ok + error);
  out->words = {"\"QMP\"", "\"return\"", "\"error\"",        "\"event\"", "\"data\"", "\"class\"", "\"desc\"",
                "\r\n",    "{}",         "\"capabilities\"", "\"oob\"",   stop,       ok,          greeting};
}

REMUSD_FUZZ_TARGET(qmp, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
