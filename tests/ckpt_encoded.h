// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ckpt/records.h"

namespace remusd::ckpt {

/// A record's body.
template <typename Record>
Bytes encoded(const Record& record) {
  Bytes body;
  encode(record, &body);
  return body;
}

}  // namespace remusd::ckpt
