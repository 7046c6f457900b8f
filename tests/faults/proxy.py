#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""A cable that can be spoilt: forwards TCP connections between two daemons, and does harm on command.

    proxy.py LISTEN_ADDRESS LISTEN_PORT TARGET_ADDRESS TARGET_PORT

Takes one JSON object a line on stdin and answers each with {"bytes": [to the target, back]}:

    {"to": {...}, "back": {...}}   what happens in each direction from now on, all of it; absent: nothing does
        hold: true           nothing goes through; the sender's buffers fill
        delay_ms: N          each piece comes so much later, in order
        rate: N              bytes a second
        piece: N             at most so many bytes at a time
        flip_after: N        one bit of the N-th byte from now on is flipped, once
        cut_after: N         the connection is reset after N bytes
    {"cut": true}              all connections are reset now
    {"record": FILE}           what the next connection sends to the target is kept there
"""

import asyncio
import json
import socket
import struct
import sys

PIECE = 65536
TICK_S = 0.002
QUEUE_PIECES = 64


class Direction:
    def __init__(self):
        self.harm = {}
        self.bytes = 0
        self.since = 0  # bytes that went through when the harm was ordered

    def order(self, harm):
        self.harm, self.since = harm, self.bytes

    def spoil(self, data):
        """The bytes that go on; None when the connection is to be cut."""
        passed = self.bytes - self.since
        flip, cut = self.harm.get("flip_after"), self.harm.get("cut_after")
        if flip is not None and passed <= flip < passed + len(data):
            changed = bytearray(data)
            changed[flip - passed] ^= 1 << (flip % 8)
            data = bytes(changed)
        if cut is not None and passed + len(data) >= cut:
            return None
        self.bytes += len(data)
        return data


class Proxy:
    def __init__(self, target):
        self.target = target
        self.to, self.back = Direction(), Direction()
        self.connections = set()
        self.record_path = None

    async def accept(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        for end in pair:
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections.add(pair)
        record = open(self.record_path, "wb", buffering=0) if self.record_path else None
        self.record_path = None
        await asyncio.gather(self.pump(reader, far_writer, self.to, pair, record),
                             self.pump(far_reader, writer, self.back, pair, None))
        self.connections.discard(pair)
        for end in pair:
            end.close()
        if record:
            record.close()

    async def pump(self, reader, writer, way, pair, record):
        """Reads ahead only as far as the queue goes, so that a slow way slows its sender down."""
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue(QUEUE_PIECES)

        async def deliver():
            while True:
                came, data = await queue.get()
                if data is None:
                    if writer.can_write_eof() and not writer.is_closing():
                        writer.write_eof()
                    return
                while way.harm.get("hold"):
                    await asyncio.sleep(TICK_S)
                wait = came + way.harm.get("delay_ms", 0) / 1000 - loop.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                piece = way.harm.get("piece", len(data))
                for at in range(0, len(data), piece):
                    part = way.spoil(data[at:at + piece])
                    if part is None:
                        self.reset(pair)
                        return
                    if record:
                        record.write(part)
                    writer.write(part)
                    await writer.drain()
                    if "rate" in way.harm:
                        await asyncio.sleep(len(part) / way.harm["rate"])

        delivery = asyncio.create_task(deliver())
        try:
            while not delivery.done():
                data = await reader.read(way.harm.get("piece", PIECE))
                await queue.put((loop.time(), data or None))
                if not data:
                    break
            await delivery
        except OSError:
            self.reset(pair)
        finally:
            delivery.cancel()

    @staticmethod
    def reset(pair):
        for end in pair:
            plug = end.get_extra_info("socket")
            if plug is not None and plug.fileno() >= 0:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()

    def obey(self, order):
        if "record" in order:
            self.record_path = order["record"]
        elif order.get("cut"):
            for pair in list(self.connections):
                self.reset(pair)
        else:
            self.to.order(order.get("to", {}))
            self.back.order(order.get("back", {}))
        return {"bytes": [self.to.bytes, self.back.bytes]}


async def main():
    listen, port, target, target_port = sys.argv[1:5]
    proxy = Proxy((target, int(target_port)))
    await asyncio.start_server(proxy.accept, listen, int(port))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    print(json.dumps("listening"), flush=True)
    while line := await orders.readline():
        print(json.dumps(proxy.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
