// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "disk/local_file.h"
#include "tests/assert_ok.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

constexpr uint64_t kBytes = 1 << 20;

class LocalFileTest : public testing::Test {
 protected:
  std::string make(const std::string& name, uint64_t bytes = kBytes) {
    const std::string path = folder_.path() + "/" + name;
    std::ofstream(path).close();
    std::filesystem::resize_file(path, bytes);
    return path;
  }
  static std::vector<std::byte> filled(size_t size, unsigned value) {
    return std::vector<std::byte>(size, std::byte(value));
  }
  TemporaryDirectory folder_;
};

TEST_F(LocalFileTest, KnowsItsSize) {
  const auto file = LocalFile::open(make("d"));
  ASSERT_OK(file);
  EXPECT_EQ(file->bytes(), kBytes);
  EXPECT_FALSE(file->read_only());
}

TEST_F(LocalFileTest, FitsAnothersSize) {
  const std::string path = make("d");
  auto file = LocalFile::open(path);
  ASSERT_OK(file);
  ASSERT_OK(file->fit(2 * kBytes));
  EXPECT_EQ(file->bytes(), 2 * kBytes);
  EXPECT_EQ(std::filesystem::file_size(path), 2 * kBytes);
  ASSERT_OK(file->write(2 * kBytes - 512, filled(512, 3)));
  ASSERT_OK(file->fit(kBytes));
  EXPECT_EQ(file->bytes(), kBytes);
  EXPECT_EQ(std::filesystem::file_size(path), 2 * kBytes) << "nothing is taken away";
  const auto run = file->next_data(0);
  ASSERT_OK(run);
  EXPECT_LE(run->begin, kBytes);
  EXPECT_LE(run->end, kBytes) << "data behind its end is none of it";
  EXPECT_EQ(file->fit(kBytes + 1).code(), Code::unsafe);
  EXPECT_EQ(file->fit(0).code(), Code::unsafe);
}

TEST_F(LocalFileTest, RefusesWhatIsNoDisk) {
  EXPECT_EQ(LocalFile::open(folder_.path() + "/none").status().code(), Code::not_found);
  EXPECT_EQ(LocalFile::open(make("empty", 0)).status().code(), Code::invalid);
  EXPECT_EQ(LocalFile::open(make("odd", 1000)).status().code(), Code::invalid);
  EXPECT_EQ(LocalFile::open("/dev/zero").status().code(), Code::invalid);
}

TEST_F(LocalFileTest, SixteenTebibytesAreTheMost) {
  // In memory: not every file system has files so large, were they all holes.
  const ScopedFd file(::memfd_create("large", MFD_CLOEXEC));
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(kMaxDiskBytes)), 0);
  EXPECT_TRUE(LocalFile::open(path).ok());
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(kMaxDiskBytes + 512)), 0);
  EXPECT_EQ(LocalFile::open(path).status().code(), Code::invalid);
}

TEST_F(LocalFileTest, IsLockedAgainstOthers) {
  const std::string path = make("d");
  const auto first = LocalFile::open(path);
  ASSERT_OK(first);
  EXPECT_EQ(LocalFile::open(path).status().code(), Code::unsafe);
  EXPECT_EQ(LocalFile::open(path, true).status().code(), Code::unsafe);
}

TEST_F(LocalFileTest, ReadersShareIt) {
  const std::string path = make("d");
  const auto first = LocalFile::open(path, true);
  ASSERT_OK(first);
  EXPECT_TRUE(first->read_only());
  EXPECT_TRUE(LocalFile::open(path, true).ok());
  EXPECT_EQ(LocalFile::open(path).status().code(), Code::unsafe);
}

TEST_F(LocalFileTest, ReadsWhatWasWritten) {
  const auto file = LocalFile::open(make("d"));
  ASSERT_OK(file);
  const auto data = filled(5000, 0xa5);
  ASSERT_OK(file->write(777, data));
  auto got = filled(5000, 0);
  ASSERT_OK(file->read(777, got));
  EXPECT_EQ(got, data);
  EXPECT_TRUE(file->flush().ok());
  EXPECT_EQ(file->read(kBytes - 10, got).code(), Code::io);  // beyond the end
}

TEST_F(LocalFileTest, ZeroAndPunchReadAsZeros) {
  const auto file = LocalFile::open(make("d"));
  ASSERT_OK(file);
  ASSERT_OK(file->write(0, filled(kBytes, 1)));
  ASSERT_OK(file->zero(1000, 100000));
  ASSERT_OK(file->punch(500000, 100000));
  auto got = filled(kBytes, 0);
  ASSERT_OK(file->read(0, got));
  for (size_t i = 0; i < got.size(); ++i) {
    const bool zero = (i >= 1000 && i < 101000) || (i >= 500000 && i < 600000);
    ASSERT_EQ(got[i], std::byte(zero ? 0 : 1)) << i;
  }
  struct stat info {};
  ASSERT_EQ(::fstat(file->fd(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), kBytes);
}

TEST_F(LocalFileTest, TellsWhereDataLies) {
  const auto file = LocalFile::open(make("d"));
  ASSERT_OK(file);
  auto none = file->next_data(0);
  ASSERT_OK(none);
  EXPECT_EQ(none->begin, kBytes);
  ASSERT_OK(file->write(256 << 10, filled(64 << 10, 1)));
  const auto run = file->next_data(0);
  ASSERT_OK(run);
  EXPECT_LE(run->begin, 256u << 10);
  EXPECT_GE(run->end, 320u << 10);
  const auto after = file->next_data(run->end);
  ASSERT_OK(after);
  EXPECT_EQ(after->begin, kBytes);
}

}  // namespace
}  // namespace remusd::disk
