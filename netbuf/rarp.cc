// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/rarp.h"

#include <algorithm>
#include <charconv>
#include <string>

namespace remusd::netbuf {

Result<MacAddress> parse_mac(std::string_view text) {
  MacAddress mac{};
  const Status invalid{Code::invalid,
                       "'" + std::string(text) + "' is not a MAC address like 52:54:00:12:34:56"};
  if (text.size() != 17) return invalid;
  for (size_t i = 0; i < mac.size(); ++i) {
    const std::string_view digits = text.substr(i * 3, 2);
    unsigned value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + 2, value, 16);
    if (error != std::errc() || end != digits.data() + 2) return invalid;
    if (i + 1 < mac.size() && text[i * 3 + 2] != ':') return invalid;
    mac[i] = static_cast<std::byte>(value);
  }
  return mac;
}

std::array<std::byte, 60> make_rarp_announcement(const MacAddress& mac) {
  constexpr std::array<unsigned char, 10> kTypeToOperation = {
      0x80, 0x35,  // Ethernet type: RARP
      0x00, 0x01,  // hardware: Ethernet
      0x08, 0x00,  // protocol: IPv4
      0x06, 0x04,  // address lengths
      0x00, 0x03,  // operation: reverse request
  };
  std::array<std::byte, 60> frame{};
  auto out = std::fill_n(frame.begin(), 6, std::byte{0xff});
  out = std::copy(mac.begin(), mac.end(), out);
  out = std::transform(kTypeToOperation.begin(), kTypeToOperation.end(), out,
                       [](unsigned char byte) { return std::byte{byte}; });
  out = std::copy(mac.begin(), mac.end(), out);  // sender hardware
  out += 4;                                      // sender protocol: unknown
  std::copy(mac.begin(), mac.end(), out);        // target hardware
  return frame;
}

}  // namespace remusd::netbuf
