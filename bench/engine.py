# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""The inner parts alone, from the programs that measure them, and what this machine can do at best."""

import ctypes
import json
import os
import re
import subprocess
import time

from figures import middle

# Names of benchmarks in ckpt_bench, by figure. The median is taken where one has several arguments.
FIGURES = {"delta_encode_gb_s": re.compile(r"delta.*encode|encode.*delta", re.I),
           "lz4_gb_s": re.compile(r"lz4", re.I), "memcpy_gb_s": re.compile(r"memcpy", re.I)}


def from_google_benchmark(text):
    """{figure: GB/s} of those that are there, and every benchmark's own GB/s."""
    each = {}
    for one in json.loads(text).get("benchmarks", []):
        if one.get("run_type", "iteration") == "iteration" and one.get("bytes_per_second"):
            each.setdefault(one["name"], one["bytes_per_second"] / 1e9)
    found = {}
    for figure, pattern in FIGURES.items():
        speed = middle([speed for name, speed in each.items() if pattern.search(name)])
        if speed is not None:
            found[figure] = speed
    return found, each


def scan_ms_per_gib(text):
    """From guest_bench: {"memory/touched GiB": ms for each GiB of memory}, with some pages dirty."""
    found = {}
    for one in json.loads(text).get("benchmarks", []):
        name = re.match(r"scan/memory_gib:(\d+)/touched_gib:(\d+)/dirty:[1-9]", one["name"])
        if name and one.get("run_type", "iteration") == "iteration" and one.get("s_per_gib"):
            found["/".join(name.groups())] = 1e3 * one["s_per_gib"]
    return found


def last_json_line(text):
    lines = text.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def output_of(program, *arguments, timeout=180):
    """None when the program is not there or fails."""
    if not os.access(program, os.X_OK):
        return None
    try:
        done = subprocess.run([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def memcpy_gb_s(size=64 << 20, rounds=15):
    """Memory to memory, larger than the caches; the best of several."""
    source, target = ctypes.create_string_buffer(os.urandom(1 << 20) * (size >> 20), size), bytearray(size)
    into = (ctypes.c_char * size).from_buffer(target)
    best = 0.0
    for _ in range(rounds):
        begun = time.monotonic()
        ctypes.memmove(into, source, size)
        best = max(best, size / (time.monotonic() - begun) / 1e9)
    return best


def lz4_gb_s(seconds=0.5):
    """lz4 on pages of 4 KiB, half noise and half a few values, as the test guest's dirtier leaves them."""
    import lz4.block  # Installed by scripts/packages.txt.
    pages = [os.urandom(2048) + bytes([number & 255, 0, 0, 0]) * 512 for number in range(256)]
    done, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        for page in pages:
            lz4.block.compress(page, store_size=False)
        done += len(pages)
    return done * 4096 / (time.monotonic() - begun) / 1e9


def measure(build, tell):
    folder = os.path.join(build, "bench")
    result, notes = {}, []
    text = output_of(os.path.join(folder, "ckpt_bench"), "--benchmark_format=json",
                     "--benchmark_min_time=0.1")
    if text is not None:
        figures, each = from_google_benchmark(text)
        result.update(figures)
        result["ckpt_bench_gb_s"] = each
    else:
        notes.append("ckpt_bench is not built")
    text = output_of(os.path.join(folder, "guest_bench"), "--benchmark_format=json",
                     "--benchmark_min_time=0.1")
    if text is not None:
        result["scan_ms_per_gib"] = scan_ms_per_gib(text)
    else:
        notes.append("guest_bench is not built, or may not track: the scan is not measured")
    text = output_of(os.path.join(folder, "engine_bench"))
    if text is not None:
        result.update(last_json_line(text))
    else:
        notes.append("engine_bench is not built: sim_epochs_per_s not measured")
    # In one run, alternating, with time between epochs as a guest has it.
    text = output_of(os.path.join(folder, "engine_bench"), "--tls", "7", "--seconds", "1",
                     "--interval-us", "5000")
    if text is not None:
        result.update(last_json_line(text))
    for figure, own in (("memcpy_gb_s", memcpy_gb_s), ("lz4_gb_s", lz4_gb_s)):
        if figure not in result:
            try:
                result[figure] = own()
                notes.append(f"{figure} is the same library called from Python")
            except ImportError:
                notes.append(f"{figure}: no python3-lz4")
    if notes:
        result["note"] = "; ".join(notes)
    tell("  " + ", ".join(f"{key} {value:.2f}" for key, value in result.items() if isinstance(value, float)))
    return result
