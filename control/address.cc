// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/address.h"

namespace remusd::control {

namespace asio = boost::asio;
using asio::ip::tcp;

Result<tcp::acceptor> listen_on(asio::io_context& loop, const std::string& address, const std::string& what) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return Status(Code::invalid, what + " '" + address + "' is not host:port");
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  boost::system::error_code error;
  tcp::resolver resolver(loop);
  const auto found = resolver.resolve(host, address.substr(colon + 1), tcp::resolver::passive, error);
  if (error) return Status(Code::unavailable, what + " on " + address + ": " + error.message());
  const tcp::endpoint endpoint = found.begin()->endpoint();
  tcp::acceptor acceptor(loop);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(64, error);
  if (error) return Status(Code::unavailable, what + " on " + address + ": " + error.message());
  return acceptor;
}

}  // namespace remusd::control
