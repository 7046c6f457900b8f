// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cstring>

#include "netbuf/net_buffer.h"

namespace remusd::netbuf {
namespace {

ifreq request_for(const std::string& name) {
  ifreq request{};
  std::memcpy(request.ifr_name, name.c_str(), name.size());
  return request;
}

bool fits(const std::string& name) {
  return !name.empty() && name.size() < IFNAMSIZ;
}

}  // namespace

Result<ScopedFd> open_tap(const std::string& name, const std::string& bridge) {
  if (!fits(name)) return Status(Code::invalid, "TAP name '" + name + "' must have 1 to 15 characters");
  if (!bridge.empty() && !fits(bridge)) {
    return Status(Code::invalid, "bridge name '" + bridge + "' must have 1 to 15 characters");
  }
  ScopedFd tap(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!tap) return Status::from_errno("open /dev/net/tun");
  ifreq request = request_for(name);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (::ioctl(tap.get(), TUNSETIFF, &request) != 0) {
    if (errno == EBUSY) return Status(Code::exists, "TAP " + name + " is in use by another process");
    return Status::from_errno("create TAP " + name);
  }
  const ScopedFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!control) return Status::from_errno("socket");
  if (!bridge.empty()) {
    ifreq member = request_for(bridge);
    member.ifr_ifindex = static_cast<int>(::if_nametoindex(name.c_str()));
    if (::ioctl(control.get(), SIOCBRADDIF, &member) != 0) {
      return Status::from_errno("put TAP " + name + " on bridge " + bridge);
    }
  }
  request = request_for(name);
  if (::ioctl(control.get(), SIOCGIFFLAGS, &request) != 0) return Status::from_errno("look at TAP " + name);
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
  if (::ioctl(control.get(), SIOCSIFFLAGS, &request) != 0) return Status::from_errno("bring up TAP " + name);
  return tap;
}

}  // namespace remusd::netbuf
