// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Runs fuzz targets on given inputs, without libFuzzer.
//
//   fuzz_replay UNIT                       its seeds, and mutants of each
//   fuzz_replay UNIT FILE|FOLDER...        these inputs
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

constexpr size_t kCuts = 48;    // of each seed
constexpr size_t kFlips = 192;  // mutants with one to four wrong bytes
constexpr uint32_t kRandomSeed = 1;

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const View bytes = bytes_of(text);
  return {bytes.begin(), bytes.end()};
}

size_t replay_seeds(const Target& target) {
  Seeds seeds;
  target.seeds(&seeds);
  REMUSD_ASSERT(!seeds.inputs.empty(), "each target has seeds");
  target.run({});
  size_t runs = 1;
  std::mt19937 random(kRandomSeed);
  for (const Bytes& seed : seeds.inputs) {
    target.run(seed);
    for (size_t i = 0; i < kCuts && !seed.empty(); ++i) {
      // A copy of its own, so that a read past the end is found.
      const Bytes cut(seed.begin(), seed.begin() + static_cast<ptrdiff_t>(random() % seed.size()));
      target.run(cut);
    }
    for (size_t i = 0; i < kFlips && !seed.empty(); ++i) {
      Bytes wrong = seed;
      for (size_t bytes = 1 + random() % 4; bytes > 0; --bytes)
        wrong[random() % wrong.size()] = static_cast<std::byte>(random());
      target.run(wrong);
    }
    runs += 1 + (seed.empty() ? 0 : kCuts + kFlips);
  }
  return runs;
}

size_t replay_path(const Target& target, const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) {
    target.run(read(path));
    return 1;
  }
  size_t runs = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (!entry.is_regular_file()) continue;
    target.run(read(entry.path()));
    ++runs;
  }
  return runs;
}

int replay(const std::vector<std::string>& arguments) {
  for (const Target& target : targets()) {
    if (arguments.empty() || arguments[0] != target.unit) continue;
    size_t runs = arguments.size() == 1 ? replay_seeds(target) : 0;
    for (size_t i = 1; i < arguments.size(); ++i) {
      if (!std::filesystem::exists(arguments[i])) {
        std::fprintf(stderr, "fuzz_replay: no such file or folder: %s\n", arguments[i].c_str());
        return 2;
      }
      runs += replay_path(target, arguments[i]);
    }
    std::printf("%s: %zu inputs\n", target.unit, runs);
    return 0;
  }
  std::fprintf(stderr, "usage: fuzz_replay UNIT [FILE|FOLDER]...; units:");
  for (const Target& target : targets()) std::fprintf(stderr, " %s", target.unit);
  std::fprintf(stderr, "\n");
  return 2;
}

}  // namespace
}  // namespace remusd::fuzz

int main(int argc, char** argv) {
  return remusd::fuzz::replay(std::vector<std::string>(argv + 1, argv + argc));
}
