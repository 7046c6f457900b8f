// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "guest/qemu/attached.h"
#include "guest/qemu/command.h"
#include "guest/qemu/options.h"
#include "guest/qemu/ram.h"

namespace remusd::guest::qemu {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Argv = std::vector<std::string>;

Definition example() {
  Definition definition;
  definition.name = "vm1";
  definition.machine = "q35";
  definition.accelerator = "tcg";
  definition.cpu = "max";
  definition.vcpus = 4;
  definition.nics = {{"e1000", "52:54:00:00:00:01", "br0", "tap0"}};
  return definition;
}

DriverOptions options() {
  DriverOptions options;
  options.runtime_dir = "/run/x,y";
  return options;
}

/// The value behind the first `option` that contains `part`.
std::string value_of(const Argv& argv, const std::string& option, const std::string& part) {
  for (size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] == option && argv[i + 1].find(part) != std::string::npos) return argv[i + 1];
  }
  return {};
}

TEST(QemuOptions, CommasAndFlagsAndJsonAreRead) {
  const auto plain = OptionList::parse("stream,addr.path=/a,,b,server", "type");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->get("type"), "stream");
  EXPECT_EQ(plain->get("addr.path"), "/a,b");
  EXPECT_EQ(plain->get("server"), "on");
  EXPECT_EQ(plain->text("type"), "stream,addr.path=/a,,b,server=on");
  const auto json =
      OptionList::parse(R"({"type":"stream","server":true,"addr":{"type":"unix","path":"/s"}})", "type");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->get("addr.path"), "/s");
  EXPECT_EQ(json->get("server"), "on");
  EXPECT_FALSE(OptionList::parse("{nonsense", "type").ok());
}

TEST(QemuCommand, ALegacyDeviceIsTheSameDeviceWithoutItsModernForm) {
  Definition definition = example();
  definition.nics[0].model = "virtio-net-pci-legacy";
  definition.disks = {{.name = "disk0", .path = "/d", .backup_path = "/d", .model = "virtio-blk-pci-legacy"}};
  const auto nics = nic_endpoints(definition, options());
  const Argv argv = build_command(definition, options(), nics, {{"disk0", "/s", "/d", false}}, Role::primary);
  EXPECT_THAT(value_of(argv, "-device", "id=nic0"), StartsWith("virtio-net-pci,disable-modern=on,id=nic0"));
  EXPECT_THAT(value_of(argv, "-device", "drive=disk"), StartsWith("virtio-blk-pci,disable-modern=on,id="));
}

TEST(QemuCommand, BothSidesDifferOnlyInWaitingForAStream) {
  const auto nics = nic_endpoints(example(), options());
  const Argv primary = build_command(example(), options(), nics, {}, Role::primary);
  Argv standby = build_command(example(), options(), nics, {}, Role::standby);
  ASSERT_EQ(standby.size(), primary.size() + 2);
  EXPECT_EQ(standby.back(), "defer");
  standby.resize(primary.size());
  EXPECT_EQ(standby, primary);
}

TEST(QemuCommand, WhatCaptureNeedsIsThere) {
  const auto nics = nic_endpoints(example(), options());
  const Argv argv = build_command(example(), options(), nics, {}, Role::primary);
  EXPECT_THAT(value_of(argv, "-object", "ram0"),
              HasSubstr("memory-backend-memfd,id=ram0,size=256M,share=on"));
  EXPECT_THAT(argv, Contains("migration.send-configuration=off"));
  EXPECT_THAT(argv, Contains("suppress-vmdesc=on"));
  EXPECT_THAT(argv, Contains("tcg,thread=multi"));
  EXPECT_THAT(value_of(argv, "-netdev", "net0"), HasSubstr("addr.path=/run/x,,y/vm1.net0"));
  EXPECT_THAT(value_of(argv, "-device", "e1000"), HasSubstr("bus=pcie.0,addr=0x3"));
  EXPECT_EQ(nics.at(0).socket_path, "/run/x,y/vm1.net0");
}

TEST(QemuCommand, DisksAreConnectedAtFixedSlotsBehindTheCards) {
  Definition with = example();
  with.disks = {{"disk0", "/a/0", "/b/0"}, {"data", "/a/1", "/b/1", true}};
  const auto disks = disk_endpoints(with, options());
  ASSERT_TRUE(disks.ok());
  ASSERT_EQ(disks->size(), 2u);
  EXPECT_EQ((*disks)[1].socket_path, "/run/x,y/vm1.data.nbd");
  EXPECT_EQ((*disks)[1].path, "/a/1");
  const Argv argv = build_command(with, options(), nic_endpoints(with, options()), *disks, Role::primary);
  EXPECT_EQ(value_of(argv, "-blockdev", "disk-disk0"),
            "driver=nbd,node-name=disk-disk0,server.type=unix,server.path=/run/x,,y/vm1.disk0.nbd,export=,"
            "reconnect-delay=600,discard=unmap,cache.direct=off,cache.no-flush=off");
  EXPECT_THAT(value_of(argv, "-device", "disk-disk0"), HasSubstr("serial=disk0,bootindex=1,"));
  EXPECT_THAT(value_of(argv, "-device", "disk-disk0"), HasSubstr("bus=pcie.0,addr=0xb"));
  EXPECT_THAT(value_of(argv, "-blockdev", "disk-data"), HasSubstr("read-only=on"));
  EXPECT_THAT(value_of(argv, "-device", "disk-data"), HasSubstr("addr=0xc"));
  with = of_the_other_host(with);
  EXPECT_EQ(disk_endpoints(with, options())->at(1).path, "/b/1");
  EXPECT_EQ(of_the_other_host(with).disks[1].path, "/a/1");
}

TEST(QemuCommand, ASocketPathThatIsTooLongIsRefused) {
  DriverOptions long_options = options();
  long_options.runtime_dir = "/" + std::string(100, 'd');
  EXPECT_EQ(paths_of(example(), long_options).status().code(), Code::invalid);
  Definition with = example();
  with.disks = {{"disk0", "/a", "/a"}};
  EXPECT_EQ(disk_endpoints(with, long_options).status().code(), Code::invalid);
}

Argv attachable() {
  return {"qemu-system-x86_64",
          "-nodefaults",
          "-vga",
          "none",
          "-nographic",
          "-machine",
          "pc,memory-backend=m",
          "-object",
          "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/x,share=on",
          "-m",
          "1G",
          "-smp",
          "2",
          "-kernel",
          "boot/k",
          "-serial",
          "chardev:s",
          "-chardev",
          "stdio,id=s",
          "-chardev",
          "pty,id=v",
          "-qmp",
          "unix:/q,server=on",
          "-pidfile",
          "/p",
          "-daemonize",
          "-netdev",
          "stream,id=n,server=on,addr.type=unix,addr.path=/n",
          "-device",
          "e1000,netdev=n,mac=52:54:00:00:00:09,addr=4"};
}

Status described(Argv argv, Definition* out = nullptr) {
  Definition definition;
  Definition* target = out != nullptr ? out : &definition;
  target->name = "vm1";
  target->attach_qmp = "/q";
  return describe_command(argv, "/home/op", target);
}

TEST(QemuAttached, TheStandbyIsTheSameMachineWithSocketsOfItsOwn) {
  Definition definition;
  const Status status = described(attachable(), &definition);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(definition.kernel, "/home/op/boot/k");
  EXPECT_EQ(definition.vcpus, 2u);
  const auto nics = attached_nics(definition);
  ASSERT_TRUE(nics.ok());
  ASSERT_EQ(nics->size(), 1u);
  EXPECT_EQ((*nics)[0].socket_path, "/n");
  EXPECT_EQ((*nics)[0].mac, "52:54:00:00:00:09");
  auto own = *nics;
  own[0].socket_path = "/run/b/n";
  const auto argv = standby_command(definition, options(), own);
  ASSERT_TRUE(argv.ok()) << argv.status().message();
  EXPECT_THAT(value_of(*argv, "-object", "id=m"), HasSubstr("memory-backend-memfd,"));
  EXPECT_THAT(value_of(*argv, "-object", "id=m"), Not(HasSubstr("mem-path")));
  EXPECT_THAT(value_of(*argv, "-netdev", "id=n"), HasSubstr("addr.path=/run/b/n"));
  EXPECT_EQ(value_of(*argv, "-chardev", "id=v"), "null,id=v");
  EXPECT_EQ(value_of(*argv, "-chardev", "id=s,"), "");
  EXPECT_EQ(value_of(*argv, "-serial", ""), "null");
  for (const char* gone : {"-qmp", "-pidfile", "-daemonize", "-nographic"}) {
    EXPECT_THAT(*argv, Not(Contains(gone)));
  }
  EXPECT_EQ(argv->back(), "defer");
}

TEST(QemuAttached, WhatCannotBeProtectedIsRefusedAndTheAdviceNamesTheOption) {
  const auto with = [](std::initializer_list<std::string> more) {
    Argv argv = attachable();
    argv.insert(argv.end(), more);
    return described(argv);
  };
  EXPECT_THAT(with({"-drive", "file=/d,readonly=on"}).message(), HasSubstr("disks are not protected yet"));
  EXPECT_THAT(with({"-device", "vfio-pci,host=1"}).message(), HasSubstr("passed-through"));
  EXPECT_THAT(with({"-device", "qxl-vga"}).message(), HasSubstr("its own memory"));
  EXPECT_THAT(with({"-netdev", "user,id=u"}).message(), HasSubstr("-netdev stream"));
  EXPECT_THAT(with({"-object", "memory-backend-ram,id=r,size=1G"}).message(), HasSubstr("share=on"));
  EXPECT_THAT(with({"-object", "filter-dump,id=f,netdev=n"}).message(), HasSubstr("gate"));
  EXPECT_THAT(with({"-vga", "std"}).message(), HasSubstr("-vga none"));
  EXPECT_THAT(with({"disk.img"}).message(), HasSubstr("disk"));
  EXPECT_THAT(with({"-device", "e1000,netdev=n,addr=5"}).message(), HasSubstr("mac="));
  EXPECT_THAT(with({"-device", "e1000,netdev=n,mac=52:54:00:00:00:08"}).message(), HasSubstr("addr="));
  Argv defaults = attachable();
  std::erase(defaults, "-nodefaults");
  EXPECT_THAT(described(defaults).message(), HasSubstr("-nodefaults"));
}

}  // namespace
}  // namespace remusd::guest::qemu
