// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "control/config.h"
#include "control/guest_file.h"

namespace remusd::control {
namespace {

using testing::HasSubstr;

class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (std::filesystem::temp_directory_path() / "remusd-config-XXXXXX").string();
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = std::filesystem::path(directory_) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
    return path.string();
  }
  std::string config_error(const std::string& text) {
    const auto config = load_config(write("remusd.toml", text));
    return config.ok() ? "" : config.status().message();
  }
  std::string guest_error(const std::string& text) {
    const auto guest = load_guest_file(write("vm1.toml", text));
    return guest.ok() ? "" : guest.status().message();
  }

  std::string directory_;
};

TEST_F(ConfigTest, EverythingButNodeHasADefault) {
  const auto config = load_config(write("remusd.toml", "node = \"a\"\n"));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->node, "a");
  EXPECT_EQ(config->api, "/run/remusd/api.sock");
  EXPECT_EQ(config->metrics, "127.0.0.1:9470");
  EXPECT_EQ(config->listen, "");
  EXPECT_EQ(config->epoch_ms, 25);
  EXPECT_EQ(config->tracker, "auto");
}

TEST_F(ConfigTest, KeysHaveAPlaceAndPlainTextMustBeAskedFor) {
  const auto config = load_config(write("remusd.toml", "node = \"a\"\n"));
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->tls_ca, "/etc/remusd/keys/ca.crt");
  EXPECT_EQ(config->tls_cert, "/etc/remusd/keys/node.crt");
  EXPECT_EQ(config->tls_key, "/etc/remusd/keys/node.key");
  EXPECT_FALSE(config->insecure);
  const auto other = load_config(
      write("remusd.toml",
            "node = \"a\"\n[tls]\nca = \"/k/ca\"\ncert = \"/k/c\"\nkey = \"/k/k\"\ninsecure = true\n"));
  ASSERT_TRUE(other.ok()) << other.status().message();
  EXPECT_EQ(other->tls_key, "/k/k");
  EXPECT_TRUE(other->insecure);
  EXPECT_THAT(config_error("node = \"a\"\n[tls]\nsecure = false\n"),
              HasSubstr(":3: unknown key 'tls.secure'"));
}

TEST_F(ConfigTest, ConfDirectoryIsReadAfterTheFileInOrderOfNames) {
  write("conf.d/20.toml", "[protection]\nepoch_ms = 50\n");
  write("conf.d/10.toml", "[protection]\nepoch_ms = 40\nheartbeat_ms = 30\n[peer.c]\naddress = \"c:1\"\n");
  write("conf.d/README", "not toml");
  const auto config = load_config(write("remusd.toml", "node = \"a\"\n[peer.b]\naddress = \"[::1]:7270\"\n"));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->epoch_ms, 50);
  EXPECT_EQ(config->heartbeat_ms, 30);
  EXPECT_EQ(config->peers.at("b"), "[::1]:7270");
  EXPECT_EQ(config->peers.at("c"), "c:1");
}

TEST_F(ConfigTest, AnUnknownKeyIsToldWithFileAndLine) {
  const std::string error = config_error("node = \"a\"\n\n[protection]\nepoc_ms = 25\n");
  EXPECT_THAT(error, HasSubstr("/remusd.toml:4: unknown key 'protection.epoc_ms'"));
  EXPECT_THAT(error, HasSubstr("epoch_ms"));
}

TEST_F(ConfigTest, AnErrorInConfDirectoryNamesThatFile) {
  write("conf.d/50-peers.toml", "\n[peer.b]\naddres = \"x:1\"\n");
  EXPECT_THAT(config_error("node = \"a\"\n"),
              HasSubstr("conf.d/50-peers.toml:3: unknown key 'peer.b.addres'"));
}

TEST_F(ConfigTest, AWrongTypeOrRangeTellsWhatIsAllowed) {
  EXPECT_THAT(config_error("node = \"a\"\n[protection]\nepoch_ms = 1\n"),
              HasSubstr(":3: 'protection.epoch_ms' must be an integer from 2 to 1000, not 1"));
  EXPECT_THAT(config_error("node = \"a\"\n[protection]\nepoch_ms = 2.5\n"), HasSubstr("not 2.5"));
  EXPECT_THAT(
      config_error("node = \"a\"\n[protection]\ntracker = \"fast\"\n"),
      HasSubstr(":3: 'protection.tracker' must be one of \"auto\", \"async\", \"sync\", not \"fast\""));
  EXPECT_THAT(config_error("node = 7\n"), HasSubstr(":1: 'node' must be"));
  EXPECT_THAT(config_error("node = \"a\"\nlisten = \"here\"\n"),
              HasSubstr(":2: 'listen' must be \"host:port\""));
  EXPECT_THAT(config_error("node = \"a\"\napi = \"relative.sock\"\n"),
              HasSubstr(":2: 'api' must be an absolute path"));
}

TEST_F(ConfigTest, TheArbiterIsAFileOrEtcd) {
  auto config = load_config(write("remusd.toml", "node = \"a\"\n"));
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->arbiter_kind, "file");
  config = load_config(write("remusd.toml", R"(node = "a"
[arbiter]
kind = "etcd"
endpoints = ["https://10.0.0.1:2379", "https://etcd-2"]
ca = "/etc/remusd/etcd-ca.crt"
cert = "/etc/remusd/etcd.crt"
key = "/etc/remusd/etcd.key"
)"));
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->arbiter_kind, "etcd");
  EXPECT_EQ(config->etcd.endpoints, (std::vector<std::string>{"https://10.0.0.1:2379", "https://etcd-2"}));
  EXPECT_EQ(config->etcd.ca, "/etc/remusd/etcd-ca.crt");
  EXPECT_EQ(config->etcd.cert, "/etc/remusd/etcd.crt");
  EXPECT_EQ(config->etcd.key, "/etc/remusd/etcd.key");
}

TEST_F(ConfigTest, AnEtcdThatCannotBeAskedIsToldWithFileAndLine) {
  const std::string head = "node = \"a\"\n[arbiter]\nkind = \"etcd\"\n";
  EXPECT_THAT(config_error(head), HasSubstr(":3: 'arbiter.endpoints' must name from 1 to 16"));
  EXPECT_THAT(config_error(head + "endpoints = \"http://x\"\n"),
              HasSubstr(":4: 'arbiter.endpoints' must be an array of texts"));
  EXPECT_THAT(config_error(head + "endpoints = [\n\"http://x\",\n\"x:2379\"]\n"),
              HasSubstr(":6: each element of 'endpoints' must be http://host[:port]"));
  EXPECT_THAT(config_error(head + "endpoints = [\"https://x\"]\ncert = \"/x\"\n"),
              HasSubstr(":3: 'arbiter.key' is missing"));
  EXPECT_THAT(config_error(head + "endpoints = [\"https://x\"]\nca = \"x\"\n"),
              HasSubstr(":5: 'arbiter.ca' must be an absolute path"));
  EXPECT_THAT(config_error("node = \"a\"\n[arbiter]\nkind = \"zookeeper\"\n"),
              HasSubstr(":3: 'arbiter.kind' must be one of \"file\", \"etcd\""));
}

TEST_F(ConfigTest, BrokenTomlIsToldWithItsLine) {
  EXPECT_THAT(config_error("node = \"a\"\nlisten = \n"), HasSubstr("/remusd.toml:2: "));
  // The parser asserts here, if it is let.
  EXPECT_THAT(config_error("node = \"a\"\n[/]\n"), HasSubstr("/remusd.toml:2: "));
  EXPECT_THAT(config_error("node = \"a\"\n\xc2\xbf\n"), HasSubstr("/remusd.toml:2: "));
}

TEST_F(ConfigTest, NodeIsRequiredAndIsNotItsOwnPeer) {
  EXPECT_THAT(config_error("listen = \"\"\n"), HasSubstr("'node' is missing"));
  EXPECT_THAT(config_error("node = \"a\"\n[peer.a]\naddress = \"x:1\"\n"), HasSubstr("this node itself"));
}

TEST_F(ConfigTest, AMissingFileIsNotFound) {
  EXPECT_EQ(load_config(directory_ + "/none.toml").status().code(), Code::not_found);
}

TEST_F(ConfigTest, AGuestFileBecomesADefinition) {
  const auto guest =
      load_guest_file(write("vm1.toml",
                            "name = \"vm1\"\ndriver = \"sim\"\nmemory_mib = 64\nvcpus = 2\n"
                            "[[nic]]\nmodel = \"e1000\"\nbridge = \"br0\"\n[sim]\nseed = 9\n"));
  ASSERT_TRUE(guest.ok()) << guest.status().message();
  EXPECT_EQ(guest->driver, "sim");
  EXPECT_EQ(guest->memory_mib, 64u);
  ASSERT_EQ(guest->nics.size(), 1u);
  EXPECT_EQ(guest->nics[0].model, "e1000");
  EXPECT_FALSE(guest->nics[0].mac.empty());
  EXPECT_EQ(guest->sim.seed, 9u);
}

TEST_F(ConfigTest, AGuestFileNamesDisks) {
  const auto guest = load_guest_file(
      write("vm1.toml",
            "name = \"vm1\"\n[[disk]]\npath = \"/a/root.img\"\nbackup_path = \"/b/root.img\"\n"
            "[[disk]]\nname = \"data\"\npath = \"/dev/vg/data\"\nread_only = true\n"));
  ASSERT_TRUE(guest.ok()) << guest.status().message();
  ASSERT_EQ(guest->disks.size(), 2u);
  EXPECT_EQ(guest->disks[0], (guest::DiskDefinition{"disk0", "/a/root.img", "/b/root.img"}));
  EXPECT_EQ(guest->disks[1], (guest::DiskDefinition{"data", "/dev/vg/data", "/dev/vg/data", true}));

  const auto held =
      load_guest_file(write("vm1.toml", "name = \"vm1\"\n[[disk]]\npath = \"/a\"\nmode = \"hold\"\n"));
  ASSERT_TRUE(held.ok()) << held.status().message();
  EXPECT_TRUE(held->disks[0].held());
  EXPECT_FALSE(guest->disks[0].held());
  EXPECT_THAT(guest_error("name = \"vm1\"\n[[disk]]\npath = \"/a\"\nmode = \"share\"\n"),
              HasSubstr(":4: 'disk.mode' must be"));

  EXPECT_THAT(guest_error("name = \"vm1\"\n[[disk]]\nfile = \"/a\"\n"),
              HasSubstr("/vm1.toml:3: unknown key 'disk.file'"));
  EXPECT_THAT(guest_error("name = \"vm1\"\n[[disk]]\npath = \"/a\"\nread_only = 1\n"),
              HasSubstr(":4: 'disk.read_only' must be"));
  EXPECT_THAT(guest_error("name = \"vm1\"\n[[disk]]\npath = \"/a\"\nmodel = \"nvme\"\n"),
              HasSubstr(":4: 'disk.model' must be"));
  EXPECT_THAT(guest_error("name = \"vm1\"\n[[disk]]\npath = \"a\"\n"),
              HasSubstr(":2: disks[0].path: 'a' is not allowed; allowed: an absolute path"));
  EXPECT_THAT(guest_error("name = \"vm1\"\ndisk = 5\n"), HasSubstr(":2: 'disk' must be an array of tables"));
}

TEST_F(ConfigTest, AGuestFilesMistakesAreToldWithFileAndLine) {
  EXPECT_THAT(guest_error("name = \"vm1\"\nmemory = 5\n"), HasSubstr("/vm1.toml:2: unknown key 'memory'"));
  EXPECT_THAT(guest_error("name = \"vm1\"\n[[nic]]\nmodel = \"ne2k\"\n"),
              HasSubstr("/vm1.toml:3: 'nic.model' must be"));
  EXPECT_THAT(guest_error("name = \"vm1\"\nvcpus = \"four\"\n"), HasSubstr(":2: 'vcpus' must be an integer"));
  EXPECT_THAT(guest_error("driver = \"sim\"\n"), HasSubstr("'name' is missing"));
  EXPECT_THAT(guest_error("name = \"VM 1\"\n"), HasSubstr(":1: 'name' must be"));
}

}  // namespace
}  // namespace remusd::control
