// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The arbiter's record as it may lie on a damaged disk. What cannot be read is never won.
#include <fcntl.h>

#include "arbiter/arbiter.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

constexpr std::chrono::seconds kPatience{20};

struct World {
  ScratchFolder folder;
  std::unique_ptr<arbiter::Arbiter> arbiter;
  World() {
    auto opened = arbiter::open_file_arbiter(folder.path());
    REMUSD_ASSERT(opened.ok(), "the folder can be opened");
    arbiter = *std::move(opened);
  }
  void write(View record) const {
    const ScopedFd file(::open((folder.path() + "/g.json").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
    REMUSD_ASSERT(file.valid() && ::write(file.get(), record.data(), record.size()) ==
                                      static_cast<ssize_t>(record.size()),
                  "the record can be written");
  }
};

void run(View bytes) {
  static const World world;
  world.write(bytes);
  const Time deadline = Clock::now() + kPatience;
  const auto read = world.arbiter->read("g", deadline);
  const arbiter::Record ours{
      .generation = 8, .owner = "b", .boot_id = "x", .epoch = 3, .nonce = "n", .peer = "a"};
  if (!read.ok()) {
    require_reason(read.status());
    for (const uint64_t expected : {0, 7}) {
      REMUSD_ASSERT(
          world.arbiter->compare_and_swap("g", expected, ours, deadline).verdict == arbiter::Verdict::unknown,
          "nobody wins over a record that cannot be read");
    }
    return;
  }
  REMUSD_ASSERT(read->has_value() && (*read)->generation > 0, "a record that is there has a generation");
  REMUSD_ASSERT(world.arbiter->compare_and_swap("g", (*read)->generation - 1, ours, deadline).verdict ==
                    arbiter::Verdict::lost,
                "an older generation loses");
  // Written anew and read again, it is the same.
  const auto won = world.arbiter->compare_and_swap("g", (*read)->generation, **read, deadline);
  REMUSD_ASSERT(won.verdict == arbiter::Verdict::won, "the right generation wins");
  const auto again = world.arbiter->read("g", deadline);
  REMUSD_ASSERT(again.ok() && again->has_value() && **again == **read, "a record is read as written");
}

void seeds(Seeds* out) {
  out->add_text(R"({"boot_id":"x","epoch":3,"generation":7,"nonce":"n","owner":"a","peer":"b"})"
                "\n");
  out->add_text(R"({"boot_id":"","epoch":0,"generation":1,"nonce":"00ff","owner":"","peer":"\u00e9"})");
  out->add_text("");
  out->words = {"\"generation\"",       "\"owner\"", "\"epoch\"", "\"nonce\"", "\"peer\"", "\"boot_id\"",
                "18446744073709551615", "1e3",       "null",      "\\u0000"};
}

REMUSD_FUZZ_TARGET(arbiter_file, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
