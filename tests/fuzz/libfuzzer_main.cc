// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The target of this program for libFuzzer. `--seeds=FOLDER` writes its seeds there, and its words as
// FOLDER.dict, and ends.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

constexpr std::string_view kSeedsFlag = "--seeds=";

void write_seeds(const std::filesystem::path& folder) {
  Seeds seeds;
  targets().front().seeds(&seeds);
  std::filesystem::create_directories(folder);
  for (size_t i = 0; i < seeds.inputs.size(); ++i) {
    std::ofstream file(folder / ("seed-" + std::to_string(i)), std::ios::binary);
    file << text_of(seeds.inputs[i]);
    REMUSD_ASSERT(file.good(), "seeds can be written");
  }
  std::ofstream words(folder.string() + ".dict");
  for (const std::string& word : seeds.words) {
    words << '"';
    for (const char c : word) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      words << escaped;
    }
    words << "\"\n";
  }
}

}  // namespace
}  // namespace remusd::fuzz

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  using namespace remusd::fuzz;
  REMUSD_ASSERT(targets().size() == 1, "a libFuzzer program has one target");
  for (int i = 1; i < *argc; ++i) {
    const std::string_view argument = (*argv)[i];
    if (!argument.starts_with(kSeedsFlag)) continue;
    write_seeds(argument.substr(kSeedsFlag.size()));
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace remusd::fuzz;
  targets().front().run(std::as_bytes(std::span(data, size)));
  return 0;
}
