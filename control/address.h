// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <string>

#include "ckpt/status.h"

namespace remusd::control {

/// Opens a listening socket on "host:port". `what` names it in errors. May look the name up, so it blocks:
/// for start-up.
Result<boost::asio::ip::tcp::acceptor> listen_on(boost::asio::io_context& loop, const std::string& address,
                                                 const std::string& what);

}  // namespace remusd::control
