#!/usr/bin/python3
# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Measures what protection costs a guest's disks, and what they cost protection, on one real pair.

  bench/disk.py [--quick] [--json] [--only PART,...] [--rounds N] [--seconds S] [--folder FOLDER]
                [--backup-folder FOLDER]

  guest   what the guest gets done on its disk, past its own cache: protected / unprotected
  client  the same by fio's nbd engine at the socket of a disk that the guest leaves alone, memory's speed the
          only limit
  pause   of a guest with a disk, at rest and at work, / of the same guest without one; all protected
  flush   4 KiB written and flushed in the guest / by the same guest on a stock QEMU that opens its own disk
  sync    what a first sync of a sparse 4 GiB disk with 200 MiB of data sends / the data

What is compared takes turns within one run; a figure is the median of the rounds, a ratio the median of the
rounds' ratios. FOLDER (/var/tmp) has the disks of the primary, --backup-folder (the same) those of the backup
and its journal. Prints what it found, and whether it is as wanted; with --json the last line is the same as
an object. Needs root, fio, build/release (REMUSD_BUILD names another build) and the guest image with a disk
(scripts/guest-image.sh --with disk). Exits 0 when everything ran, whatever the figures are."""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "tests", "world"))
import nbd  # noqa: E402
from failover import protect, protection  # noqa: E402
from scale import BOOT_S, READY, text_of  # noqa: E402
from workloads import NIC, PATIENT, SETTLE_S, guest_options, outside  # noqa: E402
from world import IMAGE, World, WorldError, run, wait_until  # noqa: E402

IMAGE_DIR = os.path.join(IMAGE, "disk")
MIB = 1 << 20
DIRTY_RATE = 2000  # pages a second, of every guest
TARGET_MIB = 256
FLUSHES, FLUSH_TURNS, WORK_EVERY_US = 150, 4, 5000
SPARSE_MIB, DATA_MIB, PIECE_MIB = 4096, 200, 2
ADDRESS = {name: f"10.77.0.{number}" for number, name in
           enumerate(("plain", "rooted", "stock", "target", "sparse"), 11)}
QUICK, FULL = {"seconds": 2.0, "rounds": 2}, {"seconds": 3.0, "rounds": 5}


class Bed:
    """The pair, and the guests that were started on it."""

    def __init__(self, world, places, options):
        self.world, self.places = world, places  # host -> where its disks are
        self.seconds, self.rounds = options.seconds, options.rounds
        state = os.path.join(world.b.dir, "state")  # with the journal
        shutil.move(state, places["b"])
        os.symlink(os.path.join(places["b"], "state"), state)
        world.a.start()
        world.b.start()

    def append(self, name, root):
        return ("console=ttyS0 quiet panic=1 mitigations=off cryptomgr.notests "
                f"remusd.ip={ADDRESS[name]}/24 remusd.dirty={DIRTY_RATE} remusd.pages=4096"
                + (" remusd.root=/dev/vda" if root else ""))

    def serial(self, name):
        return f"{self.world.dir}/{name}.serial"

    def disk(self, name, host="a"):
        return os.path.join(self.places[host], f"{name}.raw")

    def start(self, name, disk=None):
        """A guest of remusd's. `disk`: makes its disk's content; true: a root file system."""
        root = disk(self.disk(name)) if disk else False
        path = self.world.define_guest(
            name=name, kernel=f"{IMAGE_DIR}/vmlinuz", initrd=f"{IMAGE_DIR}/initrd.gz",
            append=self.append(name, root), serial_log=self.serial(name), nic=NIC)
        if disk:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f'[[disk]]\npath = "{self.disk(name)}"\nbackup_path = "{self.disk(name, "b")}"\n'
                           'model = "virtio-blk-pci-legacy"\n')
        self.world.a.must("start", name)
        self.booted(name)
        if root:
            flushes(self, name, 1)  # It makes the file.

    def start_stock(self):
        """The same guest with a root file system, without remusd."""
        disk, name = self.disk("stock"), "stock"
        root_file_system(disk)
        self.world.a.ns.links("tuntap add stock mode tap", "link set stock master br0 up")
        subprocess.Popen(self.world.a.ns.command(
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
            "-machine", "type=pc,memory-backend=ram0", "-object",
            "memory-backend-memfd,id=ram0,size=256M,share=on", "-m", "256M", "-smp", "1",
            "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-kernel", f"{IMAGE_DIR}/vmlinuz",
            "-initrd", f"{IMAGE_DIR}/initrd.gz", "-append", self.append(name, True),
            "-serial", f"file:{self.serial(name)}",
            "-netdev", "tap,id=net0,ifname=stock,script=no,downscript=no",
            "-device", "virtio-net-pci,disable-modern=on,netdev=net0,romfile=,mac=52:54:00:77:00:13",
            "-drive", f"file={disk},format=raw,if=none,id=disk,cache=writeback",
            "-device", "virtio-blk-pci,disable-modern=on,drive=disk"), stdin=subprocess.DEVNULL)
        self.booted(name)
        flushes(self, name, 1)

    def booted(self, name):
        wait_until(f"{name} to boot", lambda: READY in text_of(self.serial(name)), BOOT_S)

    def stop(self, *names):
        for name in names:
            self.world.a.must("stop", name)

    @contextlib.contextmanager
    def protected(self, name):
        protect(self.world, guest=name)
        time.sleep(SETTLE_S)
        yield
        status = self.status(name)
        if status["state"] != "protected":
            raise WorldError(f"{name} is {status['state']} after the stretch: {status['reason']}")
        self.world.a.must("unprotect", name)
        self.world.a.wait_state("unprotected", guest=name)

    def status(self, name, host="a"):
        return getattr(self.world, host).status(name)

    def caught_up(self, name):
        """The backup has brought all to its disk, so that what comes next has no debt to pay."""
        wait_until("the backup to catch up", lambda:
                   self.status(name)["disks"]["held_bytes"]["used"] == 0 and
                   self.status(name, "b")["disks"]["replica"]["behind_bytes"] == 0, 60)


def root_file_system(path):
    run("cp", "--sparse=always", os.path.join(IMAGE_DIR, "disk.raw"), path)
    return True


def noise(path):
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={TARGET_MIB}", "status=none")
    return False


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(SPARSE_MIB * MIB)
        for piece in range(DATA_MIB // PIECE_MIB):
            file.seek(piece * (SPARSE_MIB // (DATA_MIB // PIECE_MIB)) * MIB)
            file.write(os.urandom(PIECE_MIB * MIB))
    return False


def medians(rounds):
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def ratios(rounds, key, base):
    return round(statistics.median(one[key] / one[base] for one in rounds), 3)


def compared(bed, name, measure, tell):
    """Each pattern unprotected and protected in turn; measure(pattern) is one figure."""
    rounds = {pattern: [] for pattern in nbd.PATTERNS}
    for number in range(bed.rounds):
        got = {}
        for protected in ((False, True), (True, False))[number % 2]:
            with bed.protected(name) if protected else contextlib.nullcontext():
                for pattern in nbd.PATTERNS:
                    got[pattern, protected] = measure(pattern)
                    if protected:
                        bed.caught_up(name)
        for pattern, values in rounds.items():
            values.append({"unprotected": got[pattern, False], "protected": got[pattern, True]})
    bed.stop(name)
    result = {}
    for pattern, values in rounds.items():
        result[pattern] = medians(values)
        result[pattern]["ratio"] = ratios(values, "protected", "unprotected")
        tell(f"  {pattern:14}{nbd.shown(pattern, result[pattern]['unprotected'])} unprotected,"
             f"{nbd.shown(pattern, result[pattern]['protected'])} protected: {result[pattern]['ratio']:.2f}")
    return result


def client(bed, tell):
    bed.start("target", noise)
    at = os.path.join(bed.world.a.dir, "run", "target.disk0.nbd")
    return compared(bed, "target", lambda one: nbd.measure(at, one, bed.seconds, TARGET_MIB), tell), []


def guest(bed, tell):
    bed.start("rooted", root_file_system)
    numbers = {"randread_4k": 1, "randwrite_4k": 2, "read_1m": 3, "write_1m": 4}

    def measure(pattern):
        got = outside(bed.world, "disk", "--guest", ADDRESS["rooted"], numbers[pattern],
                      int(1000 * bed.seconds), 0, timeout=120)
        return got["count"] / got["seconds"] * (1 if nbd.PATTERNS[pattern][3] == "iops" else MIB)

    result = compared(bed, "rooted", measure, tell)
    return result, [(f"guest, protected / unprotected, {pattern}", one["ratio"], one["ratio"] >= 0.7)
                    for pattern, one in result.items()]


@contextlib.contextmanager
def at_work(bed, name, seconds):
    """The guest writes and flushes meanwhile, a few hundred times a second."""
    count = int(seconds * 1e6 / WORK_EVERY_US)
    worker = threading.Thread(target=flushes, args=(bed, name, count, WORK_EVERY_US))
    worker.start()
    yield
    worker.join()


def flushes(bed, name, count=FLUSHES, every_us=0):
    return outside(bed.world, "disk", "--guest", ADDRESS[name], 0, count, every_us, timeout=120)["p50_us"]


def pause(bed, tell):
    bed.start("plain")
    bed.start("rooted", root_file_system)
    kinds = {"diskless": "plain", "at_rest": "rooted", "at_work": "rooted"}
    rounds = []
    for number in range(bed.rounds):
        got = {}
        for kind in list(kinds)[number % 3:] + list(kinds)[:number % 3]:
            name = kinds[kind]
            busy = at_work(bed, name, 2 * bed.seconds + 1) if kind == "at_work" else contextlib.nullcontext()
            with busy, bed.protected(name):
                time.sleep(2 * bed.seconds)
                got[kind] = bed.status(name)["pause_ms"]["p50"]
        rounds.append(got)
    bed.stop("plain", "rooted")
    result = medians(rounds)
    wanted = []
    for kind in ("at_rest", "at_work"):
        result[f"{kind}_ratio"] = ratios(rounds, kind, "diskless")
        tell(f"  pause p50 {result['diskless']:.2f} ms diskless, {result[kind]:.2f} ms {kind}: "
             f"{result[f'{kind}_ratio']:.2f}")
        wanted.append((f"pause p50, disk {kind.replace('_', ' ')} / diskless", result[f"{kind}_ratio"],
                       result[f"{kind}_ratio"] <= 1.3))
    return result, wanted


def flush(bed, tell):
    bed.start_stock()
    bed.start("rooted", root_file_system)
    rounds = {"unprotected": [], "protected": []}
    for number in range(bed.rounds):
        for kind, found in rounds.items():
            with bed.protected("rooted") if kind == "protected" else contextlib.nullcontext():
                for turn in range(FLUSH_TURNS):
                    order = ("stock", "rooted") if (number + turn) % 2 else ("rooted", "stock")
                    found.append({guest: flushes(bed, guest) for guest in order})
    bed.stop("rooted")
    result, wanted = {}, []
    for kind, found in rounds.items():
        us = medians(found)
        result[kind] = {"us": us["rooted"], "without_remusd_us": us["stock"],
                        "ratio": ratios(found, "rooted", "stock")}
        tell(f"  a flush takes {us['stock']:.0f} us without remusd, {us['rooted']:.0f} us {kind}: "
             f"{result[kind]['ratio']:.2f}")
        wanted.append((f"flush {kind} / without remusd", result[kind]["ratio"], result[kind]["ratio"] <= 1.1))
    return result, wanted


def sync(bed, tell):
    bed.start("sparse", sparse)

    def moved():
        counter = "/sys/class/net/repl/statistics/tx_bytes"
        return int(run(*bed.world.a.ns.command("cat", counter)).stdout)

    before, begun = moved(), time.monotonic()
    protect(bed.world, guest="sparse", timeout=300)
    result = {"seconds": round(time.monotonic() - begun, 2), "data_bytes": DATA_MIB * MIB,
              "link_bytes": moved() - before, **bed.status("sparse")["disks"]["sync"]}
    bed.stop("sparse")
    result["ratio"] = round(result["sent_bytes"] / result["data_bytes"], 4)
    tell(f"  {result['sent_bytes'] / MIB:.1f} MiB sent of {DATA_MIB} MiB in {SPARSE_MIB} MiB, "
         f"{result['seconds']:.1f} s; {result['link_bytes'] / MIB:.1f} MiB on the link, memory and all")
    return result, [("first sync, bytes sent / data", result["ratio"], result["ratio"] <= 1.05)]


PARTS = {"guest": guest, "client": client, "pause": pause, "flush": flush, "sync": sync}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--folder", default="/var/tmp")
    parser.add_argument("--backup-folder")
    options = parser.parse_args()
    for field, value in (QUICK if options.quick else FULL).items():
        if getattr(options, field) is None:
            setattr(options, field, value)
    unknown = set(options.only) - set(PARTS)
    if unknown:
        sys.exit(f"disk: there is no {', '.join(sorted(unknown))}")
    result, wanted, begun = {}, [], time.monotonic()
    for part in options.only:
        print(f"[{time.monotonic() - begun:5.1f} s] {part}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="remusd-bench-") as primary, \
                tempfile.TemporaryDirectory(dir=options.backup_folder or options.folder,
                                            prefix="remusd-bench-") as backup, \
                World(protection(guest_options(**PATIENT))) as world:
            result[part], more = PARTS[part](Bed(world, {"a": primary, "b": backup}, options),
                                             lambda text: print(text, file=sys.stderr, flush=True))
            wanted += more
    for text, value, holds in wanted:
        print(f"{'holds' if holds else 'FAILS'}  {value:6.3f}  {text}")
    result["seconds"] = round(time.monotonic() - begun, 1)
    result["wanted"] = [{"what": text, "measured": value, "holds": holds} for text, value, holds in wanted]
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
