// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest that needs no kernel: 81 bytes of multiboot program that count in memory, for tests of the QEMU
// driver. Each boot writes one 'B' to the serial port and starts counting at zero; each count is written to
// the counter at 0x200000 and to one of 64 pages from 0x300000 on.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>

#include "ckpt/clock.h"
#include "guest/guest.h"
#include "guest/qemu/driver.h"
#include "tests/assert_ok.h"
#include "tests/patience.h"

namespace remusd::guest::qemu {

inline constexpr size_t kCounterAt = 0x200000;

inline const std::array<uint8_t, 81> kProgram{
    // Multiboot header: magic, flags (addresses given), checksum, header, load, end, bss end, entry.
    0x02, 0xb0, 0xad, 0x1b, 0x00, 0x00, 0x01, 0x00, 0xfe, 0x4f, 0x51, 0xe4, 0x00, 0x00, 0x10, 0x00,  //
    0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x10, 0x00,  //
    0x66, 0xba, 0xf8, 0x03,              // mov    $0x3f8, %dx
    0xb0, 0x42,                          // mov    $'B', %al
    0xee,                                // out    %al, %dx
    0x31, 0xc0,                          // xor    %eax, %eax
    0xa3, 0x00, 0x00, 0x20, 0x00,        // mov    %eax, 0x200000
    0xff, 0x05, 0x00, 0x00, 0x20, 0x00,  // loop:  incl 0x200000
    0xa1, 0x00, 0x00, 0x20, 0x00,        // mov    0x200000, %eax
    0x89, 0xc1,                          // mov    %eax, %ecx
    0x83, 0xe1, 0x3f,                    // and    $63, %ecx
    0xc1, 0xe1, 0x0c,                    // shl    $12, %ecx
    0x89, 0x81, 0x00, 0x00, 0x30, 0x00,  // mov    %eax, 0x300000(%ecx)
    0xb9, 0x20, 0x4e, 0x00, 0x00,        // mov    $20000, %ecx
    0x49,                                // delay: dec %ecx
    0x75, 0xfd,                          // jnz    delay
    0xeb, 0xdd,                          // jmp    loop
};

/// A directory with the program and a runtime directory for each of two hosts; removed at the end.
class World {
 public:
  World() {
    char name[] = "/tmp/remusd-qemu-XXXXXX";
    if (::mkdtemp(name) != nullptr) directory_ = name;
    for (const char* host : {"/a", "/b"}) std::filesystem::create_directory(directory_ + host);
    std::ofstream(kernel(), std::ios::binary)
        .write(reinterpret_cast<const char*>(kProgram.data()), kProgram.size());
  }
  ~World() {
    end_processes();
    std::filesystem::remove_all(directory_);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string kernel() const { return path("counter.bin"); }
  DriverOptions options(const std::string& host) const {
    DriverOptions options;
    options.runtime_dir = path(host);
    options.qmp_timeout_ms = 20000;
    return options;
  }
  Definition definition(const std::string& machine = "pc", uint32_t vcpus = 1,
                        const std::string& nic = "virtio-net-pci") const {
    Definition definition;
    definition.name = "vm1";
    definition.machine = machine;
    definition.accelerator = "tcg";
    definition.cpu = "qemu64";
    definition.vcpus = vcpus;
    definition.memory_mib = 64;
    definition.kernel = kernel();
    definition.serial_log = path("serial.log");
    if (!nic.empty()) definition.nics.push_back({nic, "", "", ""});
    const Status status = complete_and_validate(&definition);
    EXPECT_TRUE(status.ok()) << status.message();
    return definition;
  }
  /// How often a guest has booted, by its own word.
  size_t boots() const {
    std::ifstream file(path("serial.log"), std::ios::binary);
    return static_cast<size_t>(std::count(std::istreambuf_iterator<char>(file), {}, 'B'));
  }

 private:
  /// A test that failed leaves its QEMUs running, as a daemon would: those that name our directory.
  void end_processes() const {
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const int pid = std::atoi(entry.path().filename().c_str());
      if (pid <= 0 || pid == ::getpid()) continue;
      std::ifstream file(entry.path() / "cmdline", std::ios::binary);
      std::ostringstream text;  // what ends meanwhile is no text; an iterator would throw
      text << file.rdbuf();
      const std::string line = text.str();
      if (line.starts_with("qemu-system") && line.find(directory_ + "/") != std::string::npos)
        ::kill(pid, SIGKILL);
    }
  }

  std::string directory_;
};

inline uint32_t counter(std::span<const std::byte> memory) {
  uint32_t value = 0;
  std::memcpy(&value, memory.data() + kCounterAt, sizeof(value));
  return value;
}

inline bool counts(const Guest& guest) {
  const uint32_t before = counter(guest.memory());
  return eventually([&] { return counter(guest.memory()) > before; });
}

}  // namespace remusd::guest::qemu
