// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "arbiter/etcd_codec.h"
#include "arbiter/etcd_endpoint.h"

namespace remusd::arbiter {
namespace {

const std::string kKey = "/k";  // L2s= in base64
const std::string kHeader = R"("header":{"cluster_id":"12101053776118486841","revision":"9"})";
const std::string kEntry = R"({"key":"L2s=","create_revision":"2","mod_revision":"7","value":"eHl6"})";

std::string range(const std::string& rest) {
  return "{" + kHeader + rest + "}";
}
bool range_is_corrupt(const std::string& body) {
  const auto answer = decode_etcd_range(body, kKey);
  EXPECT_TRUE(answer.ok() || !answer.status().message().empty());
  return !answer.ok() && answer.status().code() == Code::corrupt;
}
bool swap_is_corrupt(const std::string& body) {
  const auto answer = decode_etcd_swap(body, kKey);
  return !answer.ok() && answer.status().code() == Code::corrupt;
}

TEST(EtcdCodecTest, TheKeyIsTheOneThatAnOperatorComputes) {
  // python3 -c 'import uuid; print(uuid.uuid5(uuid.UUID("ed534030-7237-4404-9e62-412fa26e1874"), "vm1"))'
  EXPECT_EQ(etcd_owner_key("vm1"), "/remusd/v1/vm/afe8e9aa-2568-5cd1-ba1f-4b7a8900510a/owner");
  EXPECT_EQ(etcd_owner_key("web.eu-1"), "/remusd/v1/vm/736b070c-bd42-5a6e-a2b2-d05f58ae4d5a/owner");
}

TEST(EtcdCodecTest, ARangeShowsTheEntryOrNone) {
  auto answer = decode_etcd_range(range(R"(,"kvs":[)" + kEntry + R"(],"count":"1")"), kKey);
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(answer->cluster_id, 12101053776118486841u);
  ASSERT_TRUE(answer->entry.has_value());
  EXPECT_EQ(answer->entry->mod_revision, 7u);
  EXPECT_EQ(answer->entry->value, "xyz");
  answer = decode_etcd_range(range(""), kKey);
  ASSERT_TRUE(answer.ok());
  EXPECT_FALSE(answer->entry.has_value());
}

TEST(EtcdCodecTest, ASwapThatLostHasNoWordForIt) {
  auto answer = decode_etcd_swap(
      range(R"(,"responses":[{"response_range":{"header":{"revision":"9"},"kvs":[)" + kEntry + "]}}]"), kKey);
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_FALSE(answer->swapped);
  EXPECT_EQ(answer->entry->value, "xyz");
  answer = decode_etcd_swap(range(R"(,"succeeded":true,"responses":[{"response_put":{}}])"), kKey);
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(answer->swapped);
  EXPECT_FALSE(answer->entry.has_value());
}

TEST(EtcdCodecTest, WonAndLostNeedTheirBranchAsProof) {
  EXPECT_TRUE(swap_is_corrupt(range("")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"succeeded":true)")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"succeeded":true,"responses":[{"response_range":{}}])")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"responses":[{"response_put":{}}])")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"responses":[])")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"responses":[{"response_range":{}},{"response_range":{}}])")));
  EXPECT_TRUE(swap_is_corrupt(range(R"(,"succeeded":1,"responses":[{"response_put":{}}])")));
  EXPECT_TRUE(range_is_corrupt(range(R"(,"responses":[{"response_range":{}}])")));
}

TEST(EtcdCodecTest, WhatIsNotWholeOrNotOurKeyIsCorrupt) {
  EXPECT_TRUE(range_is_corrupt(""));
  EXPECT_TRUE(range_is_corrupt("[]"));
  EXPECT_TRUE(range_is_corrupt("{}"));
  EXPECT_TRUE(range_is_corrupt(R"({"header":{}})"));
  EXPECT_TRUE(range_is_corrupt(R"({"header":{"cluster_id":7}})"));
  EXPECT_TRUE(range_is_corrupt(R"({"header":{"cluster_id":"0"}})"));
  EXPECT_TRUE(range_is_corrupt(R"({"header":{"cluster_id":"99999999999999999999"}})"));
  EXPECT_TRUE(range_is_corrupt(range("").substr(1)));
  EXPECT_TRUE(range_is_corrupt(range(R"(,"kvs":{})")));
  EXPECT_TRUE(range_is_corrupt(range(R"(,"kvs":[7])")));
  EXPECT_TRUE(range_is_corrupt(range(R"(,"kvs":[)" + kEntry + "," + kEntry + "]")));
  for (const char* entry : {R"({"key":"L2w=","mod_revision":"7","value":"eHl6"})",
                            R"({"key":"L2s=","mod_revision":7,"value":"eHl6"})",
                            R"({"key":"L2s=","mod_revision":"0","value":"eHl6"})",
                            R"({"key":"L2s=","mod_revision":"-1","value":"eHl6"})",
                            R"({"key":"L2s=","mod_revision":"9223372036854775808","value":"eHl6"})",
                            R"({"key":"L2s=","mod_revision":"7","value":"eHl"})",
                            R"({"key":"L2s=","mod_revision":"7","value":" eHl6   "})",
                            R"({"key":"L2s=","mod_revision":"7","value":"eHk9===="})",
                            R"({"key":"L2s=","mod_revision":"7","value":"e=l6"})",
                            R"({"key":"L2s=","mod_revision":"7","value":7})"}) {
    EXPECT_TRUE(range_is_corrupt(range(std::string(R"(,"kvs":[)") + entry + "]"))) << entry;
  }
  EXPECT_TRUE(range_is_corrupt(range(",\"x\":\"" + std::string(kMaxEtcdAnswerBytes, 'x') + "\"")));
}

TEST(EtcdCodecTest, RequestsAreReadableJson) {
  EXPECT_EQ(etcd_range_request(kKey), R"({"key":"L2s=","serializable":false})");
  EXPECT_EQ(etcd_swap_request(kKey, 7, "xyz"),
            R"({"compare":[{"key":"L2s=","mod_revision":"7","result":"EQUAL","target":"MOD"}],)"
            R"("failure":[{"request_range":{"key":"L2s=","serializable":false}}],)"
            R"("success":[{"request_put":{"key":"L2s=","value":"eHl6"}}]})");
}

TEST(EtcdCodecTest, ErrorsAreOneBoundedLine) {
  EXPECT_EQ(decode_etcd_error(R"({"error":"etcdserver: no leader","code":14})"), "etcdserver: no leader");
  EXPECT_EQ(decode_etcd_error("{\"error\":\"a\\nb\\u00e4\"}"), "a?b??");
  EXPECT_EQ(decode_etcd_error("Not Found"), "");
  EXPECT_LE(decode_etcd_error("{\"error\":\"" + std::string(5000, 'x') + "\"}").size(), 160u);
}

TEST(EtcdEndpointTest, UrlsOfOperatorsAreUnderstood) {
  const auto one = parse_etcd_endpoint("https://etcd-1.example:12379/");
  ASSERT_TRUE(one.ok());
  EXPECT_TRUE(one->tls);
  EXPECT_EQ(one->host, "etcd-1.example");
  EXPECT_EQ(one->port, 12379);
  EXPECT_FALSE(one->address.has_value());
  const auto two = parse_etcd_endpoint("http://[fd00::1]");
  ASSERT_TRUE(two.ok());
  EXPECT_FALSE(two->tls);
  EXPECT_EQ(two->host, "fd00::1");
  EXPECT_EQ(two->host_header, "[fd00::1]:2379");
  EXPECT_TRUE(two->address.has_value());
  for (const char* bad :
       {"", "http://", "10.0.0.1:2379", "ftp://x", "http://x:0", "http://x:65536", "http://x:1x",
        "http://x/path", "http://u@x", "http://fd00::1", "http://[x]", "http://[::1",
        "http://x:", "http://[::1]x", "http://a b", "http://[10.0.0.1]", "HTTP://x"}) {
    EXPECT_EQ(parse_etcd_endpoint(bad).status().code(), Code::invalid) << bad;
  }
}

}  // namespace
}  // namespace remusd::arbiter
