// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include "ckpt/status.h"

namespace remusd {

inline Status status_of(const Status& status) {
  return status;
}
template <typename T>
Status status_of(const Result<T>& result) {
  return result.ok() ? Status() : result.status();
}

}  // namespace remusd

/// Ends the test with the failure's own words.
#define ASSERT_OK(expression)                                                      \
  do {                                                                             \
    if (const auto ok_status = ::remusd::status_of(expression); !ok_status.ok()) { \
      FAIL() << to_string(ok_status.code()) << ": " << ok_status.message();        \
    }                                                                              \
  } while (false)
