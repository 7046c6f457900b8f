#!/usr/bin/env python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Checks a recorded stream of the primary against ckpt/FORMAT.md.

usage: verify_stream.py [--memory-pages N] [--allow-cut] [--disks FOLDER [--until EPOCH]] FILE

FILE holds the bytes of all frames that the primary sent, one after the other. Prints one JSON summary and
exits 0, or prints one line that says what is wrong and where, and exits 1. The image is built as the backup
builds it, from all that came; the summary tells its digest: XXH3-64 over the pages that are not zero, in
order, each as its number (u64) and its content. Pages that the backup had before and that were never sent are
counted as `kept`; they are not in the digest. With --disks the disks are built as well, as FOLDER/diskN.raw,
over what lies there (what the replica began with, or nothing), up to and with EPOCH or the last one that was
committed. Written from FORMAT.md alone.
Needs python3-xxhash and python3-lz4.
"""
import argparse
import json
import os
import struct
import sys

import lz4.block
import xxhash

MAGIC = 0x314D4552
HEADER = struct.Struct("<IHHIIQQQ")
OPTIONAL = 0x8000
PAGE = 4096
MAX_BODY = 2 << 20
MAX_PAGES = 256
MAX_BLOB = 64 << 20
MAX_PART = 1 << 20
MAX_FILE = 512 << 20
MAX_TEXT = 1 << 20
MAX_STRING = 4096
LINE, WORD = 64, 8
MAX_DELTA = 8 + PAGE // LINE + PAGE
MAX_SEED_PAGES = 4096
MAX_RUNS, MAX_RUN = 1024, 1 << 20
FEATURE_DELTA, FEATURE_SEED, FEATURE_DISK, FEATURE_HOLD = 1, 2, 4, 8

NAMES = dict(enumerate(
    ("HELLO", "REFUSE", "DEFINITION", "NEED_FILES", "FILE", "FACTS", "READY", "PAGES", "DEVICE", "BASE",
     "COMMIT", "ACK", "GOODBYE", "ORDER"), start=1))
NAMES |= {16: "DISK", 17: "SETTLED", 48: "SEED", 49: "KEEP"}
NAMES |= {OPTIONAL | 1: "HEARTBEAT", OPTIONAL | 2: "PROGRESS", OPTIONAL | 4: "INPUT"}
HELLO, PAGES, DEVICE, BASE, COMMIT, DISK, KEEP = 1, 8, 9, 10, 11, 16, 49
IN_EPOCH = (PAGES, KEEP, DISK, DEVICE, BASE, COMMIT)


class Violation(Exception):
    pass


def require(holds, why):
    if not holds:
        raise Violation(why)


def xxh3(data):
    return xxhash.xxh3_64_intdigest(data)


class Body:
    """Reads the fields of a record one after another."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, size, field):
        require(self.at + size <= len(self.data), f"{field} is cut off")
        piece = self.data[self.at:self.at + size]
        self.at += size
        return piece

    def number(self, code, field):
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), field))[0]

    def string(self, field, lines=False):
        size = self.number("H", field)
        require(size <= MAX_STRING, f"{field} is longer than {MAX_STRING} bytes")
        text = self.take(size, field)
        for byte in text:
            require(0x20 <= byte != 0x7F or (lines and byte == 0x0A), f"{field} holds a control character")
        return text

    def rest(self):
        return self.take(len(self.data) - self.at, "rest")

    def end(self):
        require(self.at == len(self.data), f"{len(self.data) - self.at} bytes too many")


class Blob:
    """The parts of a device state or a base stream within one epoch. `before`: the blob that deltas are taken
    against, None when they are not allowed."""

    def __init__(self, name, before=None):
        self.name = name
        self.before = before
        self.total = None
        self.data = bytearray()

    @property
    def received(self):
        return len(self.data)

    def add(self, body):
        total = body.number("Q", "total_bytes")
        offset = body.number("Q", "offset")
        raw_bytes = body.number("I", "raw_bytes")
        encoding = body.number("I", "encoding")
        data = body.rest()
        require(total <= MAX_BLOB, f"total_bytes {total} is too large")
        require(raw_bytes <= MAX_PART, f"raw_bytes {raw_bytes} is too large")
        require(offset + raw_bytes <= total, "the part reaches past its blob")
        require(raw_bytes > 0 or total == 0, "an empty part of a blob that is not empty")
        if self.total is None:
            self.total = total
        else:
            require(self.received < self.total, "a part after the last one")
        require(total == self.total, "total_bytes changed between parts")
        require(offset == self.received, f"the part begins at {offset} where {self.received} was due")
        if encoding == 1:
            require(len(data) == raw_bytes, "raw data is not raw_bytes long")
            self.data += data
            return
        require(encoding in (2, 16, 17), f"encoding {encoding} is unknown")
        require(1 <= len(data) < raw_bytes, f"data of encoding {encoding} is not smaller than raw_bytes")
        if encoding == 2:
            self.data += decode(data, raw_bytes)
            return
        require(self.before is not None, "a delta that was not agreed on, or of a base stream")
        require(len(self.before) == total,
                f"a delta of {total} bytes against a state of {len(self.before)} bytes")
        require(offset % PAGE == 0, "a delta begins within a block")
        if encoding == 17:
            data = decode_at_most(data, raw_bytes)
        self.data += self.blocks(Body(data), self.before[offset:offset + raw_bytes])

    @staticmethod
    def blocks(body, before):
        after = bytearray()
        for at in range(0, len(before), PAGE):
            size = body.number("H", "a block's delta_bytes")
            block = before[at:at + PAGE].ljust(PAGE, bytes(1))
            if size > 0:
                block = changed(block, body.take(size, "a block's delta"))
            after += block
        body.end()
        require(not any(after[len(before):]), "a delta reaches past its blob")
        return after[:len(before)]

    def whole(self):
        require(self.total is None or self.received == self.total,
                f"{self.name} is incomplete: {self.received} of {self.total} bytes")
        return self.total or 0


def decode(data, size):
    try:
        plain = lz4.block.decompress(data, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise Violation(f"lz4 payload does not decode: {error}") from error
    require(len(plain) == size, f"lz4 payload decodes to {len(plain)} bytes, not {size}")
    return plain


def decode_at_most(data, size):
    try:
        return lz4.block.decompress(data, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise Violation(f"lz4 payload does not decode: {error}") from error


def changed(page, delta):
    """`page` after `delta`."""
    body = Body(delta)
    line_mask = body.number("Q", "line mask")
    require(line_mask != 0, "a delta that changes no line")
    lines = [line for line in range(PAGE // LINE) if line_mask >> line & 1]
    masks = body.take(len(lines), "word masks")
    page = bytearray(page)
    for line, mask in zip(lines, masks):
        require(mask != 0, f"a delta that changes no word of line {line}")
        for word in range(LINE // WORD):
            if mask >> word & 1:
                at = line * LINE + word * WORD
                old, = struct.unpack_from("<Q", page, at)
                struct.pack_into("<Q", page, at, old ^ body.number("Q", "difference"))
    body.end()
    return bytes(page)


class Disks:
    """The disks in files, as of a committed epoch."""

    def __init__(self, folder, until):
        self.folder, self.until = folder, until
        self.files = {}
        self.changes = []  # of the epoch that comes in

    def change(self, disk, offset, size, name, payload):
        self.changes.append((disk, offset, size, name, payload))

    def commit(self, epoch):
        changes, self.changes = self.changes, []
        if self.until is not None and epoch > self.until:
            return
        for disk, offset, size, name, payload in changes:
            if disk not in self.files:
                path = os.path.join(self.folder, f"disk{disk}.raw")
                # What the replica began with, where that is there: a first sync sends what differs from it.
                self.files[disk] = open(path, "r+b" if os.path.exists(path) else "w+b")
            file = self.files[disk]
            file.seek(offset)
            file.write(decode(payload, size) if name == "lz4" else payload if name == "raw" else bytes(size))

    def close(self):
        for file in self.files.values():
            file.close()


class Stream:
    def __init__(self, memory_pages, disks=None):
        self.memory_pages = memory_pages
        self.disk_images = disks  # Disks, or None when they are not asked for
        self.frames = 0
        self.generation = 0
        self.phase = "start"  # start, hello, definition, facts, over
        self.standing = False  # the guest's last epoch here was committed
        self.epoch = 0  # last committed
        self.seeds = False  # as deltas
        self.kept = set()  # pages that the backup had: their content is not in the stream
        self.disks = self.holds = False
        self.settled, self.ordered = 0, False
        self.runs = {"zero": 0, "raw": 0, "lz4": 0, "hole": 0}
        self.disk_bytes = 0  # changed by all runs
        self.deltas = False  # offered by the primary, who sends none that the backup did not agree on
        self.pages = {"zero": 0, "raw": 0, "lz4": 0, "delta": 0, "delta_lz4": 0}
        self.image = {}  # pages that are not zero
        self.state = b""  # device state of the epoch before
        self.file = None  # (digest, total, next offset)
        self.files_done = set()
        self.begin_epoch()

    def begin_epoch(self):
        self.digest = 0
        self.epoch_frames = 0
        self.epoch_pages = 0
        self.epoch_disk_bytes = 0
        self.device = Blob("the device state", self.state if self.deltas else None)
        self.base = Blob("the base stream")

    def frame(self, header, raw_header, data):
        magic, kind, flags, _, sequence, generation, epoch, checksum = header
        require(magic == MAGIC, "wrong magic number")
        require(flags == 0, f"flags {flags} are not 0")
        due = self.frames & 0xFFFFFFFF
        require(sequence == due, f"sequence {sequence} where {due} was due")
        require(generation >= self.generation, f"generation fell from {self.generation} to {generation}")
        require(xxh3(raw_header[:32] + bytes(8) + data) == checksum, "checksum does not match")
        require(self.phase != "over", "a frame after the last one")
        self.frames += 1
        self.generation = generation
        require(kind & ~OPTIONAL != 0, "type 0")
        if kind not in NAMES:
            require(kind & OPTIONAL, f"type {kind} is mandatory and unknown")
            require(self.phase != "start", "the first frame is not HELLO")
            return
        if kind in IN_EPOCH:
            require(self.phase == "facts", "a frame of an epoch before FACTS")
            require(epoch == self.epoch + 1, f"epoch {epoch} where {self.epoch + 1} was due")
        else:
            require(epoch == 0, f"epoch {epoch} in a frame outside epochs")
        require((kind == HELLO) == (self.phase == "start"), "HELLO is the first frame, and only that")
        body = Body(data)
        handler = getattr(self, "on_" + NAMES[kind].lower(), None)
        require(handler is not None, "the primary never sends this record")
        handler(body)
        body.end()
        if kind != COMMIT and kind in IN_EPOCH:
            self.epoch_frames += 1
            self.digest = xxh3(struct.pack("<QQ", self.digest, checksum))

    def on_hello(self, body):
        low, high = body.number("H", "version_min"), body.number("H", "version_max")
        require(1 <= low <= high, f"versions {low} to {high}")
        require(low <= 1 <= high, "the stream is not of version 1")
        require(body.number("I", "reserved") == 0, "reserved is not 0")
        features, required = body.number("Q", "features"), body.number("Q", "features_required")
        require(required & ~features == 0, "features_required is not within features")
        self.deltas = features & FEATURE_DELTA != 0
        self.seeds = features & FEATURE_SEED != 0
        self.disks = features & FEATURE_DISK != 0
        self.holds = features & FEATURE_HOLD != 0
        body.take(16, "session")
        require(body.number("Q", "generation") == self.generation, "generation differs from the header's")
        for field in ("node", "vm", "software"):
            body.string(field)
        self.begin_epoch()
        self.phase = "hello"

    def text(self, body):
        require(1 <= len(body.data) <= MAX_TEXT, "the text is empty or too long")
        try:
            json.loads(body.rest().decode("utf-8"))
        except ValueError as error:
            raise Violation(f"the text is not JSON: {error}") from error

    def on_definition(self, body):
        require(self.phase == "hello", "DEFINITION is out of order")
        self.text(body)
        self.phase = "definition"

    def on_file(self, body):
        require(self.phase == "definition", "FILE is out of order")
        total, offset = body.number("Q", "total_bytes"), body.number("Q", "offset")
        size, digest = body.number("I", "data_bytes"), body.string("digest")
        body.take(size, "data")
        require(total <= MAX_FILE, f"total_bytes {total} is too large")
        require(offset + size <= total, "the part reaches past its file")
        require(size > 0 or total == 0, "an empty part of a file that is not empty")
        require(digest, "digest is empty")
        if self.file is None:
            require(digest not in self.files_done, "a file came twice")
            self.file = (digest, total, 0)
        require((digest, total, offset) == self.file, "the part does not follow the one before it")
        self.file = (digest, total, offset + size)
        if offset + size == total:
            self.files_done.add(digest)
            self.file = None

    def on_facts(self, body):
        require(self.phase == "definition", "FACTS is out of order")
        require(self.file is None, "a file is incomplete")
        self.text(body)
        self.phase = "facts"

    def on_pages(self, body):
        count = body.number("I", "count")
        require(1 <= count <= MAX_PAGES, f"count {count} is not within 1 to {MAX_PAGES}")
        require(body.number("I", "reserved") == 0, "reserved is not 0")
        table = [struct.unpack("<QIB3s", body.take(16, "page table")) for _ in range(count)]
        last = -1
        for page, size, encoding, reserved in table:
            require(page > last, f"page {page} is out of order")
            last = page
            require(self.memory_pages is None or page < self.memory_pages,
                    f"page {page} lies outside the memory")
            require(reserved == bytes(3), f"page {page} has reserved bytes that are not 0")
            payload = body.take(size, f"payload of page {page}")
            name = {0: "zero", 1: "raw", 2: "lz4", 16: "delta", 17: "delta_lz4"}.get(encoding)
            require(name is not None, f"page {page} has unknown encoding {encoding}")
            self.image[page] = self.content(page, name, payload)
            self.kept.discard(page)
            self.pages[name] += 1
        self.epoch_pages += count

    def on_disk(self, body):
        require(self.disks, "DISK, which the primary did not offer")
        count = body.number("I", "count")
        require(1 <= count <= MAX_RUNS, f"count {count} is not within 1 to {MAX_RUNS}")
        require(body.number("I", "reserved") == 0, "reserved is not 0")
        table = [struct.unpack("<QIIHB5s", body.take(24, "run table")) for _ in range(count)]
        for offset, size, payload_bytes, disk, encoding, reserved in table:
            require(reserved == bytes(5), f"the run at {offset} has reserved bytes that are not 0")
            require(1 <= size <= MAX_RUN, f"the run at {offset} has {size} bytes")
            payload = body.take(payload_bytes, f"payload of the run at {offset}")
            name = {0: "zero", 1: "raw", 2: "lz4", 3: "hole"}.get(encoding)
            require(name is not None, f"the run at {offset} has unknown encoding {encoding}")
            if name == "lz4":
                require(1 <= len(payload) < size, "an lz4 payload that saves nothing")
                decode(payload, size)
            else:
                require(len(payload) == (size if name == "raw" else 0), "a payload of another length")
            self.runs[name] += 1
            self.epoch_disk_bytes += size
            if self.disk_images:
                self.disk_images.change(disk, offset, size, name, payload)

    def on_keep(self, body):
        require(self.seeds, "KEEP, which the primary did not offer")
        require(self.epoch == 0, "KEEP after the first epoch")
        count = body.number("I", "runs")
        require(body.number("I", "reserved") == 0, "reserved is not 0")
        body.take(16, "digest")
        following, pages = 0, 0
        for _ in range(count):
            first, size = body.number("Q", "first"), body.number("Q", "count")
            require(first >= following and size >= 1, f"the run of {size} pages at {first} is out of order")
            following = first + size
            pages += size
            require(pages <= MAX_SEED_PAGES, "too many pages in a frame")
            require(self.memory_pages is None or following <= self.memory_pages,
                    f"page {following - 1} lies outside the memory")
            run = set(range(first, following))
            require(not run & self.kept and not run & self.image.keys(),
                    f"a page from {first} on was kept or sent before")
            self.kept |= run
        require(pages > 0, "KEEP keeps nothing")

    def content(self, page, name, payload):
        size = len(payload)
        if name == "zero":
            require(size == 0, f"page {page} is zero and has a payload")
            return bytes(PAGE)
        if name == "raw":
            require(size == PAGE, f"page {page} is raw and has a payload of {size} bytes")
            return payload
        require(1 <= size < PAGE, f"page {page} is {name} and has a payload of {size} bytes")
        if name == "lz4":
            return decode(payload, PAGE)
        require(self.deltas, f"page {page} is a delta, which the primary did not offer")
        require(page not in self.kept, f"page {page} is a delta against a content that was never sent")
        delta = decode_at_most(payload, MAX_DELTA) if name == "delta_lz4" else payload
        return changed(self.image.get(page, bytes(PAGE)), delta)

    def image_digest(self):
        digest = xxhash.xxh3_64()
        for page in sorted(self.image):
            if any(self.image[page]):
                digest.update(struct.pack("<Q", page))
                digest.update(self.image[page])
        return digest.hexdigest()

    def on_device(self, body):
        self.device.add(body)

    def on_base(self, body):
        self.base.add(body)

    def on_commit(self, body):
        frames, pages, device_bytes, raw_bytes, digest = (
            body.number("Q", field) for field in ("frames", "pages", "device_bytes", "raw_bytes", "digest"))
        require(self.device.total is not None, "the epoch has no device state")
        device, base = self.device.whole(), self.base.whole()
        raw = PAGE * self.epoch_pages + device + base + self.epoch_disk_bytes
        require(frames == self.epoch_frames, f"{frames} frames committed, {self.epoch_frames} came")
        require(pages == self.epoch_pages, f"{pages} pages committed, {self.epoch_pages} came")
        require(device_bytes == device, f"{device_bytes} bytes of device state committed, {device} came")
        require(raw_bytes == raw, f"{raw_bytes} raw bytes committed, {raw} came")
        require(digest == self.digest, "the digest does not match")
        self.epoch += 1
        self.disk_bytes += self.epoch_disk_bytes
        if self.disk_images:
            self.disk_images.commit(self.epoch)
        self.state = bytes(self.device.data)
        self.begin_epoch()

    def on_settled(self, body):
        require(self.holds, "SETTLED, which the primary did not offer")
        require(not self.ordered, "SETTLED after an ORDER")
        epoch = body.number("Q", "epoch")
        require(self.settled < epoch <= self.epoch, f"SETTLED of epoch {epoch} after {self.settled}, "
                f"committed {self.epoch}")
        self.settled = epoch

    def on_goodbye(self, body):
        require(body.number("H", "code") <= 11, "code is unknown")
        require(body.number("H", "reserved") == 0, "reserved is not 0")
        body.string("reason", lines=True)
        self.phase = "over"

    def on_order(self, body):
        require(self.phase == "facts", "ORDER before FACTS")
        kind = body.number("H", "kind")
        require(kind in (1, 2), "kind is unknown")
        self.standing, self.ordered = kind == 2, True
        require(body.number("H", "reserved") == 0 and body.number("I", "reserved") == 0, "reserved is not 0")

    def on_input(self, body):
        require(self.standing, "INPUT before an ORDER for a switchover")
        body.number("H", "card")
        require(body.number("H", "reserved") == 0, "reserved is not 0")
        size = body.number("I", "frame_bytes")
        require(0 < size <= 4096 + 65536, "a frame that is empty or too long")
        body.take(size, "frame")

    def on_heartbeat(self, body):
        body.number("Q", "sent_ns")
        body.number("Q", "echo_ns")


def verify(file, memory_pages, allow_cut, disks=None):
    stream = Stream(memory_pages, disks)
    offset = 0
    while True:
        raw_header = file.read(HEADER.size)
        if not raw_header:
            break
        name, number = "?", stream.frames
        try:
            if len(raw_header) < HEADER.size:
                if allow_cut:
                    break
                raise Violation("the stream ends within a header")
            header = HEADER.unpack(raw_header)
            name = NAMES.get(header[1], f"type {header[1]}")
            require(header[0] == MAGIC, "wrong magic number")
            require(header[3] <= MAX_BODY, f"a body of {header[3]} bytes is too large")
            data = file.read(header[3])
            if len(data) < header[3]:
                if allow_cut:
                    break
                raise Violation("the stream ends within a body")
            stream.frame(header, raw_header, data)
        except Violation as why:
            raise Violation(f"frame {number} ({name}) at byte {offset}: {why}") from why
        offset += HEADER.size + len(data)
    require(stream.frames > 0, "the stream is empty")
    return {"frames": stream.frames, "epochs": stream.epoch, "pages": stream.pages,
            "kept": len(stream.kept), "runs": stream.runs, "disk_bytes": stream.disk_bytes,
            "settled": stream.settled, "sent_bytes": offset, "generation": stream.generation,
            "image": stream.image_digest()}


def main():
    parser = argparse.ArgumentParser(description="Check a recorded stream of the primary.")
    parser.add_argument("file")
    parser.add_argument("--memory-pages", type=int, help="refuse page numbers from here on")
    parser.add_argument("--allow-cut", action="store_true",
                        help="the sender was killed: the last frame may be incomplete")
    parser.add_argument("--disks", metavar="FOLDER", help="build the guest's disks there")
    parser.add_argument("--until", type=int, metavar="EPOCH", help="the last epoch that they have")
    arguments = parser.parse_args()
    disks = Disks(arguments.disks, arguments.until) if arguments.disks else None
    try:
        with open(arguments.file, "rb") as file:
            print(json.dumps(verify(file, arguments.memory_pages, arguments.allow_cut, disks)))
        if disks:
            disks.close()
    except (Violation, OSError) as why:
        print(f"verify_stream: {arguments.file}: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
