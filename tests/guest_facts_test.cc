// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "guest/cpu_features.h"
#include "guest/facts.h"

namespace remusd::guest {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

Facts facts() {
  return {
      .driver = "qemu",
      .version = "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
      .machine = "pc-i440fx-7.2",
      .accelerator = "tcg",
      .cpu_model = "qemu64-x86_64-cpu",
      .vcpus = 4,
      .memory_bytes = 256 << 20,
      .features = {{"cpuid[1].ecx", 0x80202001}, {"cpuid[7].ebx", 0x20}, {"cpuid[0x12345678].eax", 0}},
      .devices = {"/machine/peripheral/net0 virtio-net-pci 00:03.0", "/machine/unattached/device[0] i8042"}};
}

TEST(Facts, EqualFactsDoNotDiffer) {
  EXPECT_THAT(differences(facts(), facts()), IsEmpty());
}

TEST(Facts, EachPlainFactIsNamedWithBothValues) {
  Facts backup = facts();
  backup.driver = "sim";
  backup.version = "8.0";
  backup.machine = "pc-q35-7.2";
  backup.accelerator = "";
  backup.cpu_model = "max-x86_64-cpu";
  backup.vcpus = 1;
  backup.memory_bytes = 1 << 20;
  EXPECT_THAT(differences(facts(), backup),
              ElementsAre("driver: primary 'qemu', backup 'sim'",
                          "hypervisor version: primary '7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)', backup '8.0'",
                          "machine type: primary 'pc-i440fx-7.2', backup 'pc-q35-7.2'",
                          "accelerator: primary 'tcg', backup (none)",
                          "cpu model: primary 'qemu64-x86_64-cpu', backup 'max-x86_64-cpu'",
                          "vcpus: primary 4, backup 1", "memory bytes: primary 268435456, backup 1048576"));
}

TEST(Facts, FeatureBitsAreNamedFromEachSide) {
  Facts primary = facts(), backup = facts();
  primary.features[0].value |= 1u << 28;  // avx
  backup.features[0].value |= 1u << 25;   // aes
  backup.features[1].value = 0;           // avx2
  primary.features[2].value = 1u << 5;
  EXPECT_THAT(
      differences(primary, backup),
      UnorderedElementsAre("cpu feature avx: primary has it, backup does not",
                           "cpu feature aes: backup has it, primary does not",
                           "cpu feature avx2: primary has it, backup does not",
                           "cpu feature bit 5 of cpuid[0x12345678].eax: primary has it, backup does not"));
}

TEST(Facts, FeatureWordThatOneSideLacksIsADifferenceEvenWhenZero) {
  Facts backup = facts();
  backup.features.pop_back();
  EXPECT_THAT(differences(facts(), backup),
              ElementsAre("cpu feature word cpuid[0x12345678].eax: only primary reports it"));
  EXPECT_THAT(differences(backup, facts()),
              ElementsAre("cpu feature word cpuid[0x12345678].eax: only backup reports it"));
}

TEST(Facts, DevicesAreComparedOneByOne) {
  Facts backup = facts();
  backup.devices[0] = "/machine/peripheral/net0 e1000 00:03.0";
  EXPECT_THAT(differences(facts(), backup),
              ElementsAre("device only on primary: /machine/peripheral/net0 virtio-net-pci 00:03.0",
                          "device only on backup: /machine/peripheral/net0 e1000 00:03.0"));
  backup = facts();
  backup.devices.push_back(backup.devices[0]);
  EXPECT_THAT(differences(facts(), backup), ElementsAre("device only on backup: " + backup.devices[0]));
}

TEST(Facts, AnotherOrderIsADifference) {
  Facts backup = facts();
  std::swap(backup.devices[0], backup.devices[1]);
  EXPECT_THAT(differences(facts(), backup), ElementsAre(HasSubstr("another order")));
  backup = facts();
  backup.features.push_back(backup.features[0]);
  EXPECT_FALSE(differences(facts(), backup).empty());
}

TEST(Facts, DifferencesAreBounded) {
  Facts backup = facts();
  for (int i = 0; i < 4000; ++i) backup.devices.push_back("/machine/extra" + std::to_string(i));
  const auto lines = differences(facts(), backup);
  EXPECT_EQ(lines.size(), 101u);
  EXPECT_EQ(lines.back(), "and 3900 more differences");
}

TEST(Facts, NothingDiffersExactlyWhenEqual) {
  std::mt19937_64 random(20260107);
  for (int round = 0; round < 2000; ++round) {
    Facts backup = facts();
    switch (random() % 5) {
      case 0:
        backup.vcpus = static_cast<uint32_t>(3 + random() % 2);
        break;
      case 1:
        backup.features[random() % 3].value ^=
            static_cast<uint32_t>((random() & random()) << (random() % 32));
        break;
      case 2:
        backup.devices[random() % 2] = facts().devices[random() % 2];
        break;
      case 3:
        backup.features[random() % 3].name = facts().features[random() % 3].name;
        break;
      default:
        break;
    }
    EXPECT_EQ(differences(facts(), backup).empty(), facts() == backup) << to_json(backup);
  }
}

TEST(CpuFeatures, KnownBitsHaveTheirNames) {
  EXPECT_EQ(feature_name("cpuid[1].ecx", 0), "sse3");
  EXPECT_EQ(feature_name("cpuid[1].ecx", 9), "ssse3");
  EXPECT_EQ(feature_name("cpuid[1].ecx", 19), "sse4_1");
  EXPECT_EQ(feature_name("cpuid[1].ecx", 31), "hypervisor");
  EXPECT_EQ(feature_name("cpuid[1].edx", 0), "fpu");
  EXPECT_EQ(feature_name("cpuid[1].EDX", 26), "sse2");
  EXPECT_EQ(feature_name("cpuid[1].edx", 31), "pbe");
  EXPECT_EQ(feature_name("cpuid[7].ebx", 5), "avx2");
  EXPECT_EQ(feature_name("cpuid[7,0].ebx", 16), "avx512f");
  EXPECT_EQ(feature_name("cpuid[7].ebx", 31), "avx512vl");
  EXPECT_EQ(feature_name("cpuid[7].ecx", 16), "la57");
  EXPECT_EQ(feature_name("cpuid[7].ecx", 22), "rdpid");
  EXPECT_EQ(feature_name("cpuid[7].ecx", 31), "pks");
  EXPECT_EQ(feature_name("cpuid[7].edx", 26), "spec_ctrl");
  EXPECT_EQ(feature_name("cpuid[7].edx", 31), "ssbd");
  EXPECT_EQ(feature_name("cpuid[7,1].eax", 4), "avx_vnni");
  EXPECT_EQ(feature_name("cpuid[0xd,1].eax", 3), "xsaves");
  EXPECT_EQ(feature_name("cpuid[13,1].eax", 3), "xsaves");
  EXPECT_EQ(feature_name("cpuid[0x80000001].ecx", 0), "lahf_lm");
  EXPECT_EQ(feature_name("cpuid[0x80000001].ecx", 29), "mwaitx");
  EXPECT_EQ(feature_name("cpuid[80000001].edx", 20), "nx");
  EXPECT_EQ(feature_name("cpuid[0x80000001].edx", 29), "lm");
  EXPECT_EQ(feature_name("cpuid[0x80000007].edx", 8), "invtsc");
  EXPECT_EQ(feature_name("cpuid[0x80000008].ebx", 12), "amd_ibpb");
  EXPECT_EQ(feature_name("cpuid[0x40000001].eax", 24), "kvmclock_stable");
}

TEST(CpuFeatures, UnknownBitsAndWordsAreTold) {
  EXPECT_EQ(feature_name("cpuid[1].ecx", 16), "bit 16 of cpuid[1].ecx");
  EXPECT_EQ(feature_name("cpuid[0xd,1].eax", 31), "bit 31 of cpuid[0xd,1].eax");
  for (const char* word : {"", "cpuid[", "cpuid[].eax", "cpuid[1]", "cpuid[1,].ecx", "cpuid[x].ecx",
                           "cpuid[99999999999].ecx", "cpuid[7,2].ebx", "msr[1].ecx"}) {
    EXPECT_EQ(feature_name(word, 3), "bit 3 of " + std::string(word));
  }
}

TEST(Facts, JsonCarriesEveryField) {
  const auto read = facts_from_json(to_json(facts()));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, facts());
}

TEST(Facts, JsonThatCannotBeTrustedIsRefusedAsCorrupt) {
  using nlohmann::json;
  const std::pair<std::function<void(json*)>, std::string> cases[] = {
      {[](json* j) { j->erase("driver"); }, "driver: missing"},
      {[](json* j) { j->erase("version"); }, "version: missing"},
      {[](json* j) { j->erase("machine"); }, "machine: missing"},
      {[](json* j) { j->erase("accelerator"); }, "accelerator: missing"},
      {[](json* j) { j->erase("cpu_model"); }, "cpu_model: missing"},
      {[](json* j) { j->erase("vcpus"); }, "vcpus: missing"},
      {[](json* j) { j->erase("memory_bytes"); }, "memory_bytes: missing"},
      {[](json* j) { j->erase("features"); }, "features: missing"},
      {[](json* j) { j->erase("devices"); }, "devices: missing"},
      {[](json* j) { (*j)["more"] = 1; }, "more: unknown key"},
      {[](json* j) { (*j)["vcpus"] = -4; }, "vcpus"},
      {[](json* j) { (*j)["vcpus"] = true; }, "vcpus"},
      {[](json* j) { (*j)["machine"] = nullptr; }, "machine"},
      {[](json* j) { (*j)["machine"] = std::string(257, 'm'); }, "machine: 257 bytes"},
      {[](json* j) { (*j)["features"][1]["value"] = uint64_t{1} << 32; }, "features[1].value"},
      {[](json* j) { (*j)["features"][1].erase("value"); }, "features[1].value: missing"},
      {[](json* j) { (*j)["features"][1]["x"] = 0; }, "features[1].x: unknown key"},
      {[](json* j) { (*j)["features"] = json(std::vector<int>(513)); }, "features: 513 elements"},
      {[](json* j) { (*j)["devices"] = json(std::vector<std::string>(4097)); }, "devices: 4097 elements"},
      {[](json* j) { (*j)["devices"][0] = 7; }, "devices[0]"},
      {[](json* j) { (*j)["devices"][0] = std::string(1025, 'd'); }, "devices[0]: 1025 bytes"},
      {[](json* j) { (*j)["devices"][0] = std::string(2 << 20, 'd'); }, "bytes are more"},
  };
  for (const auto& [change, why] : cases) {
    json value = json::parse(to_json(facts()));
    change(&value);
    const auto read = facts_from_json(value.dump());
    ASSERT_FALSE(read.ok()) << why;
    EXPECT_EQ(read.status().code(), Code::corrupt);
    EXPECT_THAT(read.status().message(), AllOf(HasSubstr("facts"), HasSubstr(why)));
  }
  const std::string text = to_json(facts());
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(facts_from_json(std::string_view(text).substr(0, size)).ok()) << size;
  }
}

}  // namespace
}  // namespace remusd::guest
