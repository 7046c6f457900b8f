#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Makes the guest send as much as it can: asks its service for long answers, without waiting for them.

    flood.py GUEST

The requests are audits (tests/guest_service/service.cc): they count nothing and change nothing in the guest.
"""

import json
import select
import socket
import struct
import sys

AUDIT = b"".join(struct.pack("<QQ", 0, counter) for counter in range(1, 65))
BURST = 20


def main():
    plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    plug.connect((sys.argv[1], 7000))
    print(json.dumps("flooding"), flush=True)
    while sys.stdin not in select.select([sys.stdin], [], [], 0.004)[0]:
        for _ in range(BURST):
            try:
                plug.send(AUDIT)
            except OSError:
                break
        try:
            while plug.recv(2048):
                pass
        except OSError:
            pass


if __name__ == "__main__":
    main()
