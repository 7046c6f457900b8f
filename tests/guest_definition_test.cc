// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "guest/definition.h"

namespace remusd::guest {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Definition good() {
  Definition definition;
  definition.name = "vm1";
  definition.kernel = "/boot/vmlinuz";
  definition.nics.resize(2);
  definition.nics[0].bridge = "br0";
  return definition;
}

Status check(const std::function<void(Definition*)>& change) {
  Definition definition = good();
  change(&definition);
  return complete_and_validate(&definition);
}

TEST(Definition, IsAcceptedAndCompletedTheSameWayEverywhere) {
  Definition first = good(), second = good();
  ASSERT_TRUE(complete_and_validate(&first).ok());
  ASSERT_TRUE(complete_and_validate(&second).ok());
  EXPECT_EQ(first, second);
  EXPECT_THAT(first.nics[0].mac, StartsWith("52:54:00:"));
  EXPECT_NE(first.nics[0].mac, first.nics[1].mac);
  EXPECT_EQ(first.nics[0].tap, "rm-vm1-0");
  EXPECT_EQ(first.nics[1].tap, "rm-vm1-1");

  Definition again = first;
  ASSERT_TRUE(complete_and_validate(&again).ok());
  EXPECT_EQ(again, first) << "completing a complete definition changes nothing";
}

TEST(Definition, MacDependsOnTheName) {
  Definition first = good(), second = good();
  second.name = "vm2";
  ASSERT_TRUE(complete_and_validate(&first).ok());
  ASSERT_TRUE(complete_and_validate(&second).ok());
  EXPECT_NE(first.nics[0].mac, second.nics[0].mac);
}

TEST(Definition, DerivedTapFitsTheKernelAndTellsLongNamesApart) {
  Definition first = good(), second = good();
  first.name = "database-server-of-the-shop.a";
  second.name = "database-server-of-the-shop.b";
  first.nics.resize(8);
  ASSERT_TRUE(complete_and_validate(&first).ok());
  ASSERT_TRUE(complete_and_validate(&second).ok());
  for (const NicDefinition& nic : first.nics) EXPECT_LE(nic.tap.size(), 15u) << nic.tap;
  EXPECT_NE(first.nics[0].tap, second.nics[0].tap);
}

TEST(Definition, GivenMacIsKeptInLowerCase) {
  Definition definition = good();
  definition.nics[0].mac = "52:54:00:AB:CD:EF";
  ASSERT_TRUE(complete_and_validate(&definition).ok());
  EXPECT_EQ(definition.nics[0].mac, "52:54:00:ab:cd:ef");
}

TEST(Definition, DisksHaveNamesAndTheSamePathOnThePeerUnlessOtherwiseSaid) {
  Definition definition = good();
  definition.disks = {{"", "/a/root.img", ""}, {"data", "/dev/vg/a", "/dev/vg/b", true}};
  ASSERT_TRUE(complete_and_validate(&definition).ok());
  EXPECT_EQ(definition.disks[0].name, "disk0");
  EXPECT_EQ(definition.disks[0].backup_path, "/a/root.img");
  const Definition peers = of_the_other_host(definition);
  EXPECT_EQ(peers.disks[0], definition.disks[0]);
  EXPECT_EQ(peers.disks[1].path, "/dev/vg/b");
  EXPECT_EQ(peers.disks[1].backup_path, "/dev/vg/a");
  const auto travelled = definition_from_json(to_json(definition));
  ASSERT_TRUE(travelled.ok()) << travelled.status().message();
  EXPECT_EQ(*travelled, definition);
  EXPECT_THAT(to_json(definition), ::testing::Not(HasSubstr("\"mode\"")))
      << "as a peer without held disks reads it";
  EXPECT_FALSE(holds_disks(definition));
  definition.disks[1].mode = "hold";
  EXPECT_TRUE(holds_disks(definition));
  const auto held = definition_from_json(to_json(definition));
  ASSERT_TRUE(held.ok()) << held.status().message();
  EXPECT_EQ(*held, definition);
  definition.disks[1].mode = "share";
  EXPECT_THAT(complete_and_validate(&definition).message(), HasSubstr("disks[1].mode: 'share'"));
  definition.disks.clear();
  EXPECT_THAT(to_json(definition), ::testing::Not(HasSubstr("disks"))) << "as a peer without disks reads it";
}

TEST(Definition, WrongDisksAreRefusedByName) {
  using Disks = std::vector<DiskDefinition>;
  const auto refusal = [](Disks disks, const std::function<void(Definition*)>& more = {}) {
    return check([&](Definition* d) {
             d->disks = std::move(disks);
             if (more) more(d);
           })
        .message();
  };
  EXPECT_EQ(refusal({{"", "/a", ""}, {"", "/b", ""}}), "");
  EXPECT_EQ(refusal({{"", "", ""}}), "disks[0].path is missing; allowed: an absolute path");
  EXPECT_THAT(refusal({{"", "a.img", ""}}),
              AllOf(HasSubstr("disks[0].path: 'a.img'"), HasSubstr("absolute")));
  EXPECT_THAT(refusal({{"", "/a", "b"}}), HasSubstr("disks[0].backup_path: 'b'"));
  EXPECT_THAT(refusal({{"", "/a", ""}, {"", "/a", ""}}), HasSubstr("disks[1].path: '/a' is not allowed"));
  EXPECT_THAT(refusal({{"", "/a", "/c"}, {"", "/b", "/c"}}), HasSubstr("disks[1].backup_path: '/c'"));
  EXPECT_THAT(refusal({{"x", "/a", ""}, {"x", "/b", ""}}), HasSubstr("disks[1].name: 'x' is not allowed"));
  for (const char* name : {"0", "Disk", "a.b", "a_b", "-", "seventeen-letters"}) {
    EXPECT_THAT(refusal({{name, "/a", ""}}), HasSubstr("disks[0].name: ")) << name;
  }
  EXPECT_THAT(refusal({{"", "/a", "", false, "ide-hd"}}), HasSubstr("disks[0].model: 'ide-hd'"));
  EXPECT_THAT(refusal(Disks(17)), HasSubstr("disks: 17 disks; allowed: at most 16"));
  EXPECT_THAT(refusal({{"", "/a", ""}}, [](Definition* d) { d->driver = "sim"; }),
              HasSubstr("disks: not allowed with driver sim"));
  EXPECT_THAT(refusal({{"", "/a", ""}}, [](Definition* d) { d->attach_qmp = "/q"; }),
              HasSubstr("disks: not allowed together with attach_qmp"));
}

struct Wrong {
  const char* label;
  std::function<void(Definition*)> change;
  std::string field;
  std::string allowed;
};

TEST(Definition, WrongFieldIsRefusedByNameWithWhatIsAllowed) {
  const Wrong cases[] = {
      {"empty name", [](Definition* d) { d->name = ""; }, "name", "a-z"},
      {"upper case", [](Definition* d) { d->name = "VM"; }, "name", "a-z"},
      {"path as name", [](Definition* d) { d->name = "../vm"; }, "name", "a-z"},
      {"dot first", [](Definition* d) { d->name = ".vm"; }, "name", "letter or digit"},
      {"long name", [](Definition* d) { d->name = std::string(33, 'a'); }, "name", "1 to 32"},
      {"driver", [](Definition* d) { d->driver = "xen"; }, "driver", "qemu, sim"},
      {"machine", [](Definition* d) { d->machine = "microvm"; }, "machine", "pc, q35"},
      {"machine option", [](Definition* d) { d->machine = "pc,vmport=on"; }, "machine", "pc, q35"},
      {"machine version", [](Definition* d) { d->machine = "pc-q35-7."; }, "machine", "pc-q35-VERSION"},
      {"accelerator", [](Definition* d) { d->accelerator = "hvf"; }, "accelerator", "kvm, tcg"},
      {"cpu", [](Definition* d) { d->cpu = "max -device vfio-pci"; }, "cpu", "CPU model"},
      {"no vcpus", [](Definition* d) { d->vcpus = 0; }, "vcpus", "1 to 64"},
      {"many vcpus", [](Definition* d) { d->vcpus = 65; }, "vcpus", "1 to 64"},
      {"little memory", [](Definition* d) { d->memory_mib = 15; }, "memory_mib", "16 to 65536"},
      {"much memory", [](Definition* d) { d->memory_mib = 65537; }, "memory_mib", "16 to 65536"},
      {"no memory", [](Definition* d) { d->driver = "sim", d->memory_mib = 0; }, "memory_mib", "1 to 65536"},
      {"kernel", [](Definition* d) { d->kernel = "vmlinuz"; }, "kernel", "absolute"},
      {"initrd alone", [](Definition* d) { d->kernel = "", d->initrd = "/i"; }, "initrd", "kernel"},
      {"append alone", [](Definition* d) { d->kernel = "", d->append = "quiet"; }, "append", "kernel"},
      {"append", [](Definition* d) { d->append = std::string(2048, 'a'); }, "append", "2047"},
      {"line break", [](Definition* d) { d->append = "a\nb"; }, "append", "line breaks"},
      {"not UTF-8", [](Definition* d) { d->append = "\xc0\xaf"; }, "append", "UTF-8"},
      {"surrogate", [](Definition* d) { d->append = "\xed\xa0\x80"; }, "append", "UTF-8"},
      {"cut UTF-8", [](Definition* d) { d->append = "\xe2\x82"; }, "append", "UTF-8"},
      {"serial", [](Definition* d) { d->serial_log = "serial.log"; }, "serial_log", "absolute"},
      {"nine cards", [](Definition* d) { d->nics.resize(9); }, "nics", "at most 8"},
      {"model", [](Definition* d) { d->nics[1].model = "rtl8139"; }, "nics[1].model",
       "virtio-net-pci, virtio-net-pci-legacy, e1000"},
      {"short mac", [](Definition* d) { d->nics[1].mac = "52:54:00"; }, "nics[1].mac", "six pairs"},
      {"mac digits", [](Definition* d) { d->nics[1].mac = "52:54:00:12:34:5g"; }, "nics[1].mac", "six pairs"},
      {"multicast", [](Definition* d) { d->nics[1].mac = "53:54:00:12:34:56"; }, "nics[1].mac", "unicast"},
      {"zero mac", [](Definition* d) { d->nics[1].mac = "00:00:00:00:00:00"; }, "nics[1].mac", "zero"},
      {"long tap", [](Definition* d) { d->nics[0].tap = std::string(16, 't'); }, "nics[0].tap", "1 to 15"},
      {"tap path", [](Definition* d) { d->nics[0].tap = "a/b"; }, "nics[0].tap", "1 to 15"},
      {"bridge", [](Definition* d) { d->nics[0].bridge = "br 0"; }, "nics[0].bridge", "1 to 15"},
      {"tap is bridge", [](Definition* d) { d->nics[0].tap = "br0"; }, "nics[0].tap", "another name"},
      {"mac twice", [](Definition* d) { d->nics[0].mac = d->nics[1].mac = "52:54:00:00:00:01"; },
       "nics[1].mac", "its own"},
      {"tap twice", [](Definition* d) { d->nics[0].tap = d->nics[1].tap = "t0"; }, "nics[1].tap", "its own"},
      {"many args", [](Definition* d) { d->extra_args.assign(65, "-nodefaults"); }, "extra_args",
       "at most 64"},
      {"attach path", [](Definition* d) { d->attach_qmp = "qmp.sock"; }, "attach_qmp", "absolute"},
      {"attach length", [](Definition* d) { d->attach_qmp = "/" + std::string(107, 'a'); }, "attach_qmp",
       "107"},
      {"attach sim", [](Definition* d) { d->driver = "sim", d->attach_qmp = "/q"; }, "attach_qmp", "qemu"},
      {"command alone", [](Definition* d) { d->attach_command = {"qemu"}; }, "attach_command", "attach_qmp"},
      {"dirty rate", [](Definition* d) { d->sim.dirty_pages_per_ms = 5000; }, "sim.dirty_pages_per_ms",
       "0 to 4096"},
  };
  for (const Wrong& wrong : cases) {
    const Status status = check(wrong.change);
    EXPECT_EQ(status.code(), Code::invalid) << wrong.label;
    EXPECT_THAT(status.message(),
                AllOf(StartsWith(wrong.field), HasSubstr("allowed"), HasSubstr(wrong.allowed)))
        << wrong.label;
    EXPECT_EQ(status.message().find('\n'), std::string::npos) << wrong.label;
  }
}

TEST(Definition, BoundsThemselvesAreAllowed) {
  EXPECT_TRUE(check([](Definition* d) { d->vcpus = 64, d->memory_mib = 65536; }).ok());
  EXPECT_TRUE(check([](Definition* d) { d->memory_mib = 16, d->name = std::string(32, 'a'); }).ok());
  EXPECT_TRUE(check([](Definition* d) { d->driver = "sim", d->memory_mib = 1; }).ok());
  EXPECT_TRUE(check([](Definition* d) { d->machine = "pc-i440fx-7.2"; }).ok());
  EXPECT_TRUE(
      check([](Definition* d) { d->append = "name=Z\xc3\xbcrich \xe2\x82\xac \xf0\x9f\x98\x80"; }).ok());
}

using Arguments = std::vector<std::string>;

TEST(Definition, WhatCannotBeProtectedIsRefusedAsUnsafe) {
  const Arguments cases[] = {
      {"-device", "vfio-pci,host=01:00.0"},
      {"--device", "vfio-pci,host=01:00.0"},
      {"-device", "driver=vfio-pci,host=01:00.0"},
      {"-device", "host=01:00.0,driver=vfio-pci"},
      {"-device", R"({"host":"01:00.0","driver":"vfio-pci"})"},
      {"-device", "pci-assign,host=01:00.0"},
      {"-device", "usb-host,hostbus=1"},
      {"-device", "vhost-user-fs-pci,chardev=c,tag=t"},
      {"-device", "pc-dimm,memdev=m"},
      {"-object", "memory-backend-ram,id=m,size=1G"},
      {"-snapshot"},
      {"--snapshot"},
      {"-drive", "file=/disk.img,if=virtio"},
      {"-drive", "file=/disk.img,readonly=on,readonly=off"},
      {"-blockdev", R"({"driver":"file","filename":"/d","read-only":false})"},
      {"-hda", "/disk.img"},
      {"/disk.img"},
      {"-nodefaults", "/disk.img"},
      {"--nographic", "/disk.img"},
      {"-nodefaults", "-device", "virtio-rng-pci", "/disk.img"},
      {"-netdev", "user,id=n"},
      {"-nic", "user"},
      {"-virtfs", "local,path=/"},
      {"-readconfig", "/etc/qemu.cfg"},
  };
  for (const Arguments& arguments : cases) {
    const Status status = check([&](Definition* d) { d->extra_args = arguments; });
    EXPECT_EQ(status.code(), Code::unsafe) << arguments.back();
    EXPECT_THAT(status.message(), AllOf(StartsWith("extra_args["), HasSubstr("cannot be protected")));
  }
}

TEST(Definition, WhatRemusdSetsItselfIsRefused) {
  for (const char* option : {"-incoming", "--incoming", "-m", "-smp", "-machine", "-M", "-accel", "-cpu",
                             "-kernel", "-qmp", "-daemonize", "-S", "-loadvm", "-mem-path"}) {
    const Status status = check([&](Definition* d) { d->extra_args = {option, "x"}; });
    EXPECT_EQ(status.code(), Code::invalid) << option;
    EXPECT_THAT(status.message(), HasSubstr("is set by remusd")) << option;
  }
}

TEST(Definition, HarmlessArgumentsPass) {
  const Arguments cases[] = {
      {"-device", "virtio-rng-pci"},
      {"-device", R"({"driver":"virtio-balloon-pci"})"},
      {"-object", "rng-random,id=r,filename=/dev/urandom"},
      {"-drive", "file=/cd.iso,media=cdrom,readonly=on"},
      {"-blockdev", R"({"driver":"file","filename":"/d","read-only":true})"},
      {"-nic", "none"},
      {"-rtc", "base=utc", "-nodefaults", "-bios", "/bios.bin"},
  };
  for (const Arguments& arguments : cases) {
    const Status status = check([&](Definition* d) { d->extra_args = arguments; });
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(Definition, AttachedCommandLineMayHaveItsOwnMachineButNothingUnprotected) {
  const auto attached = [](Arguments arguments) {
    return check([&](Definition* d) {
      d->attach_qmp = "/run/vm1.qmp";
      d->attach_command = {"/usr/bin/qemu-system-x86_64",
                           "-m",
                           "256",
                           "-machine",
                           "pc,memory-backend=ram",
                           "-object",
                           "memory-backend-memfd,id=ram,size=256M,share=on",
                           "-netdev",
                           "stream,id=n,server=on,addr.type=unix,addr.path=/n"};
      for (std::string& argument : arguments) d->attach_command.push_back(std::move(argument));
    });
  };
  EXPECT_TRUE(attached({}).ok()) << attached({}).message();
  EXPECT_EQ(attached({"-device", "vfio-pci,host=01:00.0"}).code(), Code::unsafe);
  EXPECT_EQ(attached({"-netdev", "user,id=u"}).code(), Code::unsafe);
  EXPECT_EQ(attached({"-drive", "file=/disk.img"}).code(), Code::unsafe);
}

Definition full() {
  Definition definition = good();
  definition.machine = "q35";
  definition.accelerator = "tcg";
  definition.cpu = "max,avx512f=off";
  definition.vcpus = 4;
  definition.memory_mib = 1024;
  definition.initrd = "/initrd \"quoted\"";
  definition.append = "quiet Z\xc3\xbcrich";
  definition.serial_log = "/var/log/vm1";
  definition.extra_args = {"-device", "virtio-rng-pci"};
  definition.attach_qmp = "/run/qmp";
  definition.attach_command = {"qemu-system-x86_64", "-nodefaults"};
  definition.sim = {UINT64_MAX, 77};
  EXPECT_TRUE(complete_and_validate(&definition).ok());
  return definition;
}

TEST(Definition, JsonCarriesEveryField) {
  const auto read = definition_from_json(to_json(full()));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, full());
  // Each field stands in the text: a field that to_json forgot would have its default on the other side.
  const auto json = nlohmann::json::parse(to_json(full()));
  EXPECT_EQ(json.size(), 16u);
}

TEST(Definition, AbsentJsonKeysTakeTheDefaults) {
  const auto read = definition_from_json(R"({"name":"vm1"})");
  ASSERT_TRUE(read.ok());
  Definition expected;
  expected.name = "vm1";
  EXPECT_EQ(*read, expected);
}

TEST(Definition, JsonThatIsNotStrictlyADefinitionIsRefused) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "JSON"},
      {"[]", "object"},
      {R"({"name":"vm1")", "JSON"},
      {"{\"name\":\"\xff\"}", "JSON"},
      {R"({})", "name: missing"},
      {R"({"name":"vm1","colour":"red"})", "colour: unknown key"},
      {R"({"name":"vm1","name":"vm2"})", "twice"},
      {R"({"name":1})", "name: expected a string"},
      {R"({"name":"vm1","vcpus":"4"})", "vcpus: expected an integer"},
      {R"({"name":"vm1","vcpus":-1})", "vcpus: expected an integer"},
      {R"({"name":"vm1","vcpus":1.5})", "vcpus: expected an integer"},
      {R"({"name":"vm1","vcpus":4294967296})", "vcpus: 4294967296 is more"},
      {R"({"name":"vm1","memory_mib":99999999999999999999})", "memory_mib"},
      {R"({"name":"vm1","nics":{}})", "nics: expected an array"},
      {R"({"name":"vm1","nics":[1]})", "nics[0]"},
      {R"({"name":"vm1","nics":[{"mak":""}]})", "nics[0].mak: unknown key"},
      {R"({"name":"vm1","nics":[{},{},{},{},{},{},{},{},{}]})", "nics: 9 elements"},
      {R"({"name":"vm1","sim":{"seed":"1"}})", "sim.seed"},
      {R"({"name":"vm1","sim":[]})", "sim: expected an object"},
      {R"({"name":"vm1","extra_args":[null]})", "extra_args[0]"},
      {R"({"name":")" + std::string(40, 'a') + R"("})", "name: 40 bytes"},
      {R"({"name":"vm1","append":")" + std::string(2 << 20, 'a') + R"("})", "bytes are more than"},
      {std::string(1 << 19, '['), "JSON"},
  };
  for (const auto& [text, why] : cases) {
    const auto read = definition_from_json(text);
    ASSERT_FALSE(read.ok()) << text.substr(0, 80);
    EXPECT_EQ(read.status().code(), Code::invalid);
    EXPECT_THAT(read.status().message(), HasSubstr(why));
  }
}

TEST(Definition, EveryTruncationOfItsJsonIsRefused) {
  const std::string text = to_json(full());
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(definition_from_json(std::string_view(text).substr(0, size)).ok()) << size;
  }
}

}  // namespace
}  // namespace remusd::guest
