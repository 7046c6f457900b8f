# Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
"""Bar charts as SVG, readable on light and on dark ground. Pure."""

import math
from xml.sax.saxutils import escape

# Of middle lightness, and told apart without colour vision too.
COLOURS = ("#4a8fc4", "#d9822b", "#6aa84f", "#a66bbf")
INK, RULE = "#808080", "#80808055"
STEEP = 50  # Values further apart than this are shown on a logarithmic scale.
LEFT, RIGHT, TOP, BAR, GAP, WIDTH = 190, 70, 64, 14, 12, 760


def nice_ceiling(value):
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def label(value):
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


class Scale:
    """From values to pixels, linear from 0 or logarithmic over whole decades."""

    def __init__(self, values, logarithmic):
        known = [value for value in values if value is not None and value > 0] or [1.0]
        self.logarithmic = logarithmic
        self.span = WIDTH - LEFT - RIGHT
        if logarithmic:
            self.low = math.floor(math.log10(min(known)))
            self.high = max(self.low + 1, math.ceil(math.log10(max(known))))
            self.ticks = [10.0 ** power for power in range(self.low, self.high + 1)]
        else:
            top = nice_ceiling(max(known))
            self.low, self.high = 0.0, top
            self.ticks = [top * i / 5 for i in range(6)]

    def x(self, value):
        if self.logarithmic:
            value = math.log10(max(value, 10.0 ** self.low))
        share = (value - self.low) / (self.high - self.low)
        return LEFT + self.span * min(1.0, max(0.0, share))


def text(x, y, words, anchor="start", size=12, extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}"'
            f'{extra}>{escape(words)}</text>')


def bar_chart(title, unit, series, groups, line=None, logarithmic=False):
    """A chart as text. series: names of the bars in a group; groups: [(label, [value or None for each])];
    line: (label, value) drawn across, as the floor under pauses. What was not measured says so."""
    values = [value for _, ours in groups for value in ours] + ([line[1]] if line else [])
    scale = Scale(values, logarithmic)
    group_height = BAR * len(series) + GAP
    bottom = TOP + group_height * len(groups)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 48}" '
           f'viewBox="0 0 {WIDTH} {bottom + 48}" font-family="sans-serif">',
           text(12, 22, title, size=15, extra=' font-weight="bold"')]
    x = 12.0
    for name, colour in zip(series, COLOURS):
        out.append(f'<rect x="{x:.1f}" y="34" width="10" height="10" fill="{colour}"/>')
        out.append(text(x + 14, 43, name))
        x += 30 + 7 * len(name)
    for tick in scale.ticks:
        at = scale.x(tick)
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 6}" x2="{at:.1f}" y2="{bottom}" stroke="{RULE}"/>')
        out.append(text(at, bottom + 16, label(tick), "middle", 11))
    out.append(text(LEFT + scale.span / 2, bottom + 36, unit + (", logarithmic" if logarithmic else ""),
                    "middle"))
    for row, (name, ours) in enumerate(groups):
        top = TOP + row * group_height
        out.append(text(LEFT - 8, top + BAR * len(series) / 2 + 4, name, "end"))
        for i, value in enumerate(ours):
            y = top + i * BAR
            if value is None:
                out.append(text(LEFT + 4, y + 11, "not measured", size=10, extra=' font-style="italic"'))
                continue
            end = scale.x(value)
            out.append(f'<rect x="{LEFT}" y="{y + 1}" width="{max(end - LEFT, 1):.1f}" height="{BAR - 2}" '
                       f'fill="{COLOURS[i % len(COLOURS)]}"/>')
            out.append(text(end + 4, y + 11, label(value), size=10))
    if line and line[1] is not None:
        at = scale.x(line[1])
        out.append(f'<line x1="{at:.1f}" y1="{TOP - 6}" x2="{at:.1f}" y2="{bottom}" stroke="{INK}" '
                   'stroke-dasharray="5 3"/>')
        out.append(text(at + 3, TOP - 10, f"{line[0]} {label(line[1])}", size=11))
    out.append("</svg>")
    return "\n".join(out) + "\n"


def charts(result):
    """One chart for each figure: {file name: text}."""
    remusd = [(name, one) for name, one in result["remusd"].items()]
    peers = list(result["peers"].items())
    floor = result["floor"]["pause_ms"]["p50"]
    floor_line = ("floor", floor) if floor is not None else None

    def by_workload(title, unit, series, pick, **more):
        groups = [(name, pick(one)) for name, one in remusd if any(v is not None for v in pick(one))]
        known = [value for _, ours in groups for value in ours if value]
        steep = bool(known) and max(known) > STEEP * min(known)
        return bar_chart(title, unit, series, groups, logarithmic=steep, **more)

    def phase(one, name):
        return (one.get("phases_ms") or {}).get(name, {}).get("mean")

    busy = result["remusd"]["dirty_8k"]
    phases = list((busy.get("phases_ms") or {"stop": {"mean": None}}))
    made = {
        "pause": by_workload("Pause of the guest", "ms", ("p50", "p99"),
                             lambda one: [one["pause_ms"]["p50"], one["pause_ms"]["p99"]], line=floor_line),
        "phases": bar_chart("Phases of an epoch at 8,000 pages/s", "ms, mean", ("mean",),
                            [(name, [phase(busy, name)]) for name in phases]),
        "commit": by_workload("From the start of the pause to the acknowledgement", "ms", ("p50", "p99"),
                              lambda one: [one["commit_ms"]["p50"], one["commit_ms"]["p99"]]),
        "progress": by_workload("Guest progress", "of an unprotected guest's", ("progress",),
                                lambda one: [one["progress_ratio"]]),
        "request": by_workload("Request latency, median", "ms", ("unprotected", "protected"),
                               lambda one: [one["unprotected_request_ms"]["p50"], one["request_ms"]["p50"]]),
        "throughput": by_workload("Request throughput", "of an unprotected guest's", ("throughput",),
                                  lambda one: [one["throughput_ratio"]]),
        "wire": by_workload("Bytes on the wire", "of raw dirty bytes", ("wire",),
                            lambda one: [one["wire_ratio"]]),
        "cpu": by_workload("Processor time of the daemons", "cores", ("primary", "backup"),
                           lambda one: [one["cpu_cores"], one.get("cpu_cores_backup")]),
    }
    ours = [("remusd, dirty_8k", [busy["pause_ms"]["p50"], busy["commit_ms"]["p50"]])]
    made["peers"] = bar_chart("One checkpoint at 8,000 pages/s, beside stock QEMU", "ms, median",
                              ("pause", "total"),
                              ours + [(name, [one["pause_ms"]["p50"], one["total_ms"]["p50"]])
                                      for name, one in peers], line=floor_line, logarithmic=True)
    return made
