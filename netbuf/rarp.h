// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "ckpt/status.h"

namespace remusd::netbuf {

using MacAddress = std::array<std::byte, 6>;

/// "52:54:00:12:34:56" to bytes; `invalid` for anything else.
Result<MacAddress> parse_mac(std::string_view text);

/// A broadcast reverse-ARP request (RFC 903) from `mac`, padded to the Ethernet minimum of 60 bytes. Bridges
/// and switches that see it learn where the address now lives; hosts ignore it.
std::array<std::byte, 60> make_rarp_announcement(const MacAddress& mac);

}  // namespace remusd::netbuf
