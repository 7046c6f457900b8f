#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Who is heard: listens to the guest on the switch, in the client's namespace.

    ears.py MAC PORT=HOST...          for example ears.py 52:54:00:11:22:33 lan-a=a lan-b=b

One socket sees the frames of all ports in their order. Each line on stdin is answered with one JSON line: the
turns since the line before, [[host, first, last, frames, first frame], ...] (CLOCK_MONOTONIC). A guest that
moves once makes two turns; a third turn means that a side was heard after the other one.
"""

import json
import select
import socket
import sys
import time

ETH_P_ALL = 3
BUFFER_BYTES = 8 << 20
SO_RCVBUFFORCE = 33


def main():
    mac = bytes.fromhex(sys.argv[1].replace(":", ""))
    hosts = {}
    for pair in sys.argv[2:]:
        port, host = pair.split("=")
        hosts[port] = host
    ears = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    ears.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    turns = []
    print(json.dumps("listening"), flush=True)
    while True:
        ready, _, _ = select.select([ears, sys.stdin], [], [])
        # What has arrived is heard before a question is answered.
        while ears in ready or sys.stdin in ready:
            try:
                data, address = ears.recvfrom(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            host = hosts.get(address[0])
            if host is None or address[2] == socket.PACKET_OUTGOING or data[6:12] != mac:
                continue
            now = time.monotonic()
            if turns and turns[-1][0] == host:
                turns[-1][2] = now
                turns[-1][3] += 1
            else:
                turns.append([host, now, now, 1, data.hex()])
        if sys.stdin in ready:
            if not sys.stdin.readline():
                return
            print(json.dumps(turns), flush=True)
            turns = []


if __name__ == "__main__":
    main()
