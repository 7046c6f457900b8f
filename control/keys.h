// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A small authority in a directory, and the files that it makes for nodes: ca.crt and ca.key, NODE.crt and
// NODE.key. Nothing that exists is ever overwritten. Keys are made readable by their owner alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ckpt/certificate.h"

namespace remusd::control {

inline constexpr const char* kDefaultKeysDir = "/etc/remusd/keys";
inline constexpr int64_t kDaySeconds = 24 * 3600;
inline constexpr int kAuthorityDays = 3650;
inline constexpr int kNodeDays = 825;

/// Makes the authority; `dir` is made when it is not there. The paths that were written.
Result<std::vector<std::string>> init_authority(const std::string& dir);

/// Makes NODE.crt and NODE.key in `dir`; or, with `out`, what is carried to the node: ca.crt, node.crt and
/// node.key there. The certificate never outlives the authority's. The paths that were written.
Result<std::vector<std::string>> issue_node(const std::string& dir, const std::string& node, int days,
                                            const std::string& out);

struct CertificateEntry {
  std::string file;
  ckpt::CertificateFacts facts;
  int64_t days_left = 0;  // negative: expired
};
/// The certificates in `files`, or when it is empty in all *.crt of `dir`, in the order of their names.
Result<std::vector<CertificateEntry>> list_certificates(const std::string& dir,
                                                        const std::vector<std::string>& files);

}  // namespace remusd::control
