// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest with a disk in a real QEMU, the disk behind a stock NBD server. Needs root, as the driver's tests.
#include <sys/socket.h>
#include <sys/un.h>

#include "ckpt/scoped_fd.h"
#include "guest/qemu/process.h"
#include "tests/guest_qemu_world.h"

namespace remusd::guest::qemu {
namespace {

constexpr size_t kSectorBytes = 512, kSectors = 64;
constexpr size_t kBegunAt = 0x8000, kDoneAt = 0x8200;

/// A boot sector for a guest without a kernel. Each boot writes one 'B' to the serial port, then counts: each
/// count is begun at 0x8000, written to one of 64 sectors behind the first, and done at 0x8200. 'E' on the
/// serial port: the disk failed.
const std::array<uint8_t, 104> kBootSector{
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,  // xor %ax, %ax; mov %ax, %ds; %es; %ss
    0xbc, 0x00, 0x7c,                                // mov  $0x7c00, %sp
    0xba, 0xf8, 0x03, 0xb0, 0x42, 0xee,              // 'B' to 0x3f8
    0x66, 0x31, 0xc0,                                // xor  %eax, %eax
    0x66, 0xa3, 0x00, 0x80,                          // mov  %eax, 0x8000
    0x66, 0xa3, 0x00, 0x82,                          // mov  %eax, 0x8200
    0x66, 0xff, 0x06, 0x00, 0x80,                    // loop: incl 0x8000
    0x66, 0xa1, 0x00, 0x80,                          // mov  0x8000, %eax
    0x66, 0x83, 0xe0, 0x3f,                          // and  $63, %eax
    0x66, 0x40,                                      // inc  %eax
    0x66, 0xa3, 0x60, 0x7c,                          // mov  %eax, the packet's sector
    0xbe, 0x58, 0x7c,                                // mov  $packet, %si
    0xb2, 0x80,                                      // mov  $0x80, %dl
    0xb8, 0x00, 0x43, 0xcd, 0x13,                    // mov  $0x4300, %ax; int $0x13 (extended write)
    0x72, 0x14,                                      // jc   failed
    0x66, 0xa1, 0x00, 0x80,                          // mov  0x8000, %eax
    0x66, 0xa3, 0x00, 0x82,                          // mov  %eax, 0x8200
    0x66, 0xb9, 0x20, 0x4e, 0x00, 0x00,              // mov  $20000, %ecx
    0x66, 0x49, 0x75, 0xfc,                          // delay: dec %ecx; jnz delay
    0xeb, 0xcd,                                      // jmp  loop
    0xb0, 0x45, 0xba, 0xf8, 0x03, 0xee,              // failed: 'E' to 0x3f8
    0xf4, 0xeb, 0xf7,                                // hlt; jmp failed
    0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00,  // packet: 1 sector from 0:0x8000
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // to this one
};

bool listens(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const ScopedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

uint32_t word_at(std::span<const std::byte> memory, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, memory.data() + at, sizeof(value));
  return value;
}

class QemuDisk : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::array<char, (kSectors + 1) * kSectorBytes> image{};
    std::memcpy(image.data(), kBootSector.data(), kBootSector.size());
    image[510] = 0x55;
    image[511] = static_cast<char>(0xaa);
    std::ofstream(image_, std::ios::binary).write(image.data(), image.size());
    std::filesystem::resize_file(image_, size_t{1} << 20);
  }
  void TearDown() override {
    for (const Process& server : servers_) (void)server.kill();
  }

  Definition definition() const {
    Definition out = world_.definition();
    out.kernel.clear();
    out.disks.push_back({"", image_, ""});
    const Status status = complete_and_validate(&out);
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }
  /// Serves the guest's disk on one host; two servers of one file see each other's writes. It is slow, so
  /// that there is a write under way at most pauses.
  void serve(const std::string& host) {
    const auto disks = disks_of(definition(), world_.options(host));
    ASSERT_OK(disks);
    const std::string& socket = disks->at(0).socket_path;
    auto server = Process::spawn(
        {"nbdkit", "--foreground", "--unix", socket, "--filter=delay", "file", image_, "wdelay=20ms"}, {},
        world_.path("nbd.log"));
    ASSERT_OK(server);
    servers_.push_back(*std::move(server));
    ASSERT_TRUE(eventually([&] { return listens(socket); })) << servers_.back().last_words();
  }
  /// The highest count on the disk.
  uint32_t on_disk() const {
    std::ifstream file(image_, std::ios::binary);
    uint32_t highest = 0;
    for (size_t sector = 1; sector <= kSectors; ++sector) {
      uint32_t count = 0;
      file.seekg(static_cast<std::streamoff>(sector * kSectorBytes));
      file.read(reinterpret_cast<char*>(&count), sizeof(count));
      highest = std::max(highest, count);
    }
    return highest;
  }
  static bool writes(const Guest& guest) {
    const uint32_t before = word_at(guest.memory(), kDoneAt);
    return eventually([&] { return word_at(guest.memory(), kDoneAt) > before; });
  }
  static bool begins_a_write(const Guest& guest) {
    const uint32_t before = word_at(guest.memory(), kBegunAt);
    return eventually([&] { return word_at(guest.memory(), kBegunAt) > before; });
  }

  World world_;
  std::string image_ = world_.path("disk.raw");
  std::vector<Process> servers_;
};

TEST_P(QemuDisk, AGuestBootsFromItStandsStillInPausesAndWritesOnInItsStandby) {
  ASSERT_NO_FATAL_FAILURE(serve("a"));
  ASSERT_NO_FATAL_FAILURE(serve("b"));
  auto started = qemu::start(definition(), world_.options("a"));
  ASSERT_OK(started);
  Guest& primary = **started;
  ASSERT_EQ(primary.disks().size(), 1u);
  EXPECT_EQ(primary.disks()[0].path, image_);
  ASSERT_TRUE(eventually([&] { return world_.boots() == 1 && on_disk() > 10; }));
  auto prepared = qemu::prepare(definition(), world_.options("b"));
  ASSERT_OK(prepared);
  Standby& standby = **prepared;
  EXPECT_EQ(standby.disks().at(0).name, "disk0");
  EXPECT_THAT(differences(primary.facts(), standby.facts()), ::testing::IsEmpty());

  ASSERT_OK(primary.start_tracking());
  const auto base = primary.base_stream();
  ASSERT_OK(base);
  PageSet dirty;
  const auto copy = [&] {
    for (const PageRange& range : dirty) {
      std::memcpy(standby.memory().data() + range.first * kPageSize,
                  primary.memory().data() + range.first * kPageSize, range.count * kPageSize);
    }
  };
  std::vector<double> pauses;
  int ended_in_pause = 0;
  // On a busy machine the guest may not come as far as its write before it is stopped: then once more.
  for (int epoch = 0; epoch < 50 || (ended_in_pause < 25 && epoch < 500); ++epoch) {
    ASSERT_TRUE(begins_a_write(primary));
    const Time begin = Clock::now();
    ASSERT_OK(primary.pause());
    ASSERT_OK(primary.collect_dirty(&dirty));
    copy();
    const uint32_t stood_at = on_disk();
    EXPECT_GE(stood_at, word_at(primary.memory(), kDoneAt));
    EXPECT_LE(stood_at, word_at(primary.memory(), kBegunAt));
    // A write that was under way has ended, though the guest has not seen it yet.
    ended_in_pause += stood_at > word_at(primary.memory(), kDoneAt) ? 1 : 0;
    ASSERT_OK(primary.collect_dirty(&dirty));
    EXPECT_EQ(page_count(dirty), 0u) << "a device wrote the memory in the pause";
    EXPECT_EQ(on_disk(), stood_at);
    ASSERT_OK(primary.resume());
    pauses.push_back(to_ms(Clock::now() - begin));
    ASSERT_OK(primary.save());
  }
  EXPECT_GE(ended_in_pause, 25);
  std::sort(pauses.begin(), pauses.end());
  std::printf("[ INFO     ] pause with a disk: median %.2f ms, longest %.2f ms\n", pauses[pauses.size() / 2],
              pauses.back());
  ASSERT_TRUE(writes(primary));
  ASSERT_OK(primary.halt());
  ASSERT_OK(primary.collect_dirty(&dirty));
  copy();
  const auto saved = primary.save();
  ASSERT_OK(saved);
  const std::vector<std::byte> device(saved->begin(), saved->end());
  ASSERT_OK(primary.destroy());

  const uint32_t committed = word_at(standby.memory(), kDoneAt), stood_at = on_disk();
  EXPECT_GE(stood_at, committed);
  std::unique_ptr<Guest> replica;
  if (GetParam()) {
    auto promoted = standby.restore_and_run(*base, device);
    ASSERT_OK(promoted);
    replica = *std::move(promoted);
  } else {
    ASSERT_OK(standby.load(*base, device));
    EXPECT_EQ(on_disk(), stood_at) << "it stands";
    auto running = standby.run();
    ASSERT_OK(running);
    replica = *std::move(running);
  }
  ASSERT_TRUE(eventually([&] { return on_disk() > stood_at + 10; })) << "its disk is not active";
  EXPECT_EQ(world_.boots(), 1u);
  EXPECT_EQ(replica->disks().at(0).socket_path, world_.path("b/vm1.disk0.nbd"));

  ASSERT_OK(replica->start_tracking());
  ASSERT_OK(replica->base_stream());
  ASSERT_TRUE(writes(*replica));
  ASSERT_OK(replica->pause());
  ASSERT_OK(replica->resume());
  ASSERT_OK(replica->save());
  ASSERT_TRUE(writes(*replica));
  ASSERT_OK(replica->destroy());
}

INSTANTIATE_TEST_SUITE_P(Ways, QemuDisk, ::testing::Values(true, false),
                         [](const auto& way) { return way.param ? "RestoreAndRun" : "LoadThenRun"; });

TEST(QemuDisks, AsManyAsAreAllowedFitBesideAsManyCards) {
  World world;
  Definition definition = world.definition("q35");
  definition.nics.resize(8);
  definition.disks.resize(16);
  definition.extra_args = {"-usb"};
  for (size_t i = 0; i < definition.disks.size(); ++i) {
    definition.disks[i].path = world.path("disk" + std::to_string(i));
  }
  ASSERT_OK(complete_and_validate(&definition));
  const auto disks = disks_of(definition, world.options("a"));
  ASSERT_OK(disks);
  std::vector<Process> servers;
  for (const DiskEndpoint& disk : *disks) {
    std::ofstream(disk.path, std::ios::binary) << std::string(4096, 'x');
    auto server = Process::spawn({"nbdkit", "--foreground", "--unix", disk.socket_path, "file", disk.path},
                                 {}, world.path("nbd.log"));
    ASSERT_OK(server);
    servers.push_back(*std::move(server));
  }
  for (const DiskEndpoint& disk : *disks) {
    EXPECT_TRUE(eventually([&] { return listens(disk.socket_path); })) << disk.name;
  }
  auto guest = qemu::start(definition, world.options("a"));
  EXPECT_TRUE(guest.ok()) << guest.status().message();
  if (guest.ok()) {
    EXPECT_TRUE(counts(**guest));
    EXPECT_TRUE((*guest)->destroy().ok());
  }
  for (const Process& server : servers) (void)server.kill();
}

}  // namespace
}  // namespace remusd::guest::qemu
