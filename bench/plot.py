#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the results of a course.

    bench/plot.py FOLDER

Reads FOLDER/course.jsonl, which `quire bench --output` wrote, on a GPU or a CPU, and writes
FOLDER/roofline.svg (speed over arithmetic intensity, under the run's ceilings) and
FOLDER/heatmap.svg (how much of the ceiling that bounds a row, beside the best peer's). On a CPU,
peers are those of FOLDER/peers.jsonl (bench/cpu_peers.py), as often faster or slower than quire as
they were in that run. Needs what requirements-plots.txt names.
"""

import io
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

INK, FAINT, GRID = "#24292f", "#7d858e", "#e4e7ea"
SHADES = LinearSegmentedColormap.from_list("ceiling", ["#f3f7fb", "#9ccbe8", "#0072b2", "#003f66"])
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "quire",
}


@dataclass(frozen=True)
class Group:
    """Workloads of a kind, found by their names."""

    title: str
    pattern: str
    colour: str  # of Okabe and Ito, whom everybody can tell apart
    marker: str


GROUPS = [
    Group("decode", r"^dec .*(?<!win1k)$", "#0072b2", "o"),
    Group("speculative decode", r"^(spec|tree)", "#56b4e9", "s"),
    Group("chunks and prompts", r"^(chunk|pre) .*(?<!win1k)$", "#d55e00", "^"),
    Group("mixed batch", r"^mix ", "#e69f00", "D"),
    Group("shared prefixes", r"^share ", "#cc79a7", "P"),
    Group("sliding window", r"win1k$", "#009e73", "v"),
    Group("append", r"^append ", FAINT, "X"),
    Group("others", r"", INK, "*"),
]


def ratios_to_quire(path):
    """Of each workload of cpu_peers.py: the best peer, and its time over quire's."""
    times = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            times.setdefault(record["workload"], {})[record["impl"]] = record["us_median"]
    ratios = {}
    for name, row in times.items():
        own = row.pop("quire", None)
        if own and row:
            best = min(row, key=row.get)
            ratios[name] = (best, row[best] / own)
    return ratios


class Row:
    """What a workload asks for and what it took. Speeds are in the course's unit."""

    def __init__(self, record, unit, peer=None):
        self.unit = unit  # FLOP/s
        self.name = record["workload"]
        self.group = next(group for group in GROUPS if re.search(group.pattern, self.name))
        self.flop, self.bytes = record["flop"], record["bytes"]
        self.us, self.peer_us = record["us_median"], record.get("us_peer_scaled")
        self.percent = record.get("pct_of_ceiling")
        floor = record.get("floor_us")
        self.peer_percent = 100 * floor / self.peer_us if floor and self.peer_us else None
        name = record.get("peer") or ""
        if peer:
            name, ratio = peer
            self.peer_us = self.us * ratio
            self.peer_percent = self.percent / ratio if self.percent else None
        self.peer = (
            name.replace("torch_", "torch ")
            .replace("flash_attention_3", "FA3")
            .replace("flashinfer_", "FlashInfer ")
        )

    def intensity(self):
        return self.flop / self.bytes

    def speed(self):
        return self.flop / self.us * 1e6 / self.unit

    def peer_speed(self):
        return self.flop / self.peer_us * 1e6 / self.unit


class Course:
    """The rows of a run, and its ceilings."""

    def __init__(self, path):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records = [each for each in records if each["impl"] == "quire" and each.get("bytes")]
        if not records or not records[0]["ceiling_gflop_per_s"]:
            sys.exit(f"{path}: expected rows of quire with both ceilings, found none")
        run = records[0]
        on_cpu = run["device"] == "cpu"
        self.prefix = "G" if on_cpu else "T"
        unit = 1e9 if on_cpu else 1e12
        machine = f"{run['machine']}, {run['threads']} threads" if on_cpu else run["machine"]
        self.title = f"{machine} · {run['dtype']} · {run['date']} · {run['commit']}"
        self.read = run["ceiling_gb_per_s"] * 1e9 / unit
        self.peak = run["ceiling_gflop_per_s"] * 1e9 / unit
        self.instruction = run["kernel"] if on_cpu else "matmul"
        peers = ratios_to_quire(path.with_name("peers.jsonl")) if on_cpu else {}
        self.peer_label = "best peer, in turns" if on_cpu else "best peer, scaled"
        self.rows = [Row(record, unit, peers.get(record["workload"])) for record in records]


# --- roofline -------------------------------------------------------------------------------------


def neighbours(rows, reach=0.1):
    """Rows whose points lie so close in x that their labels go together; `reach` is in decades."""
    cluster = []
    for row in sorted(rows, key=Row.intensity):
        if cluster and math.log10(row.intensity() / cluster[-1].intensity()) > reach:
            yield cluster
            cluster = []
        cluster.append(row)
    yield cluster


def label(axes, rows, ridge):
    """Names right of the points, one below another; of rows bound by arithmetic, below them.

    Right of a point is right of those at its height, too.
    """
    line = 10**-0.056  # to the next label below
    is_deeper = False  # every second cluster, so that wide labels do not meet
    for cluster in neighbours(rows):
        intensities = [row.intensity() for row in cluster]
        is_below = min(intensities) > ridge
        middle = math.sqrt(min(intensities) * max(intensities))
        cluster.sort(key=Row.speed, reverse=True)
        y = math.inf
        if is_below:
            y = cluster[-1].speed() * line ** (2 if is_deeper else 0.3)
            is_deeper = not is_deeper
        for row in cluster:
            level = [each for each in cluster if 0.5 < each.speed() / row.speed() < 2]
            y = min(y * line, row.speed())
            axes.annotate(
                row.name,
                (row.intensity(), row.speed()),
                (middle if is_below else 1.3 * max(map(Row.intensity, level)), y),
                ha="center" if is_below else "left",
                va="center",
                fontsize=7.5,
                arrowprops={
                    "arrowstyle": "-",
                    "color": FAINT,
                    "lw": 0.5,
                    "relpos": (0.5, 1) if is_below else (0, 0.5),
                    "shrinkA": 1,
                    "shrinkB": 3,
                },
            )


def draw_roof(axes, course):
    ridge = course.peak / course.read
    low, high = 0.7, 40000
    axes.plot(
        [low, ridge, high],
        [low * course.read, course.peak, course.peak],
        color=INK,
        lw=1.4,
        zorder=2,
    )
    floor = min(row.speed() for row in course.rows if row.flop) / 3
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, course.peak * 2))
    peak = f"{course.instruction} {course.peak:.0f} {course.prefix}FLOP/s"
    axes.text(ridge * 1.1, course.peak * 1.08, peak)
    slope_start = 9
    axes.text(
        slope_start,
        slope_start * course.read * 1.12,
        f"read {course.read:.3g} {course.prefix}B/s",
        rotation=math.degrees(math.atan2(*reversed(decade_inches(axes)))),
        rotation_mode="anchor",
    )


def decade_inches(axes):
    """Inches of a decade of x and of y."""
    box = axes.get_window_extent().transformed(axes.figure.dpi_scale_trans.inverted())
    decades = [math.log10(high / low) for low, high in (axes.get_xlim(), axes.get_ylim())]
    return box.width / decades[0], box.height / decades[1]


def draw_roofline(course):
    figure, axes = pyplot.subplots(figsize=(10, 6.2))
    figure.subplots_adjust(left=0.065, right=0.985, top=0.92, bottom=0.085)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.6)
    draw_roof(axes, course)
    rows = [row for row in course.rows if row.flop]
    for row in rows:
        x, own = row.intensity(), row.speed()
        if row.peer_us:
            peer = row.peer_speed()
            axes.plot([x, x], [own, peer], color=row.group.colour, lw=0.8, alpha=0.6, zorder=3)
            axes.plot(x, peer, "_", color=row.group.colour, ms=9, mew=1.6, zorder=3)
        style = {"color": row.group.colour, "marker": row.group.marker, "mec": "white"}
        axes.plot(x, own, **style, mew=0.6, ms=7, zorder=4)
    label(axes, rows, course.peak / course.read)
    axes.set_xlabel("arithmetic intensity, FLOP a byte that must be moved")
    axes.set_ylabel(f"{course.prefix}FLOP/s")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = [group for group in GROUPS if any(row.group is group for row in rows)]
    handles = [
        Line2D([], [], color=g.colour, marker=g.marker, ls="", mec="white", ms=7.5, label=g.title)
        for g in drawn
    ]
    peer = {"color": INK, "marker": "_", "ms": 9, "mew": 1.6}
    handles.append(Line2D([], [], **peer, ls="", label=course.peer_label))
    axes.legend(handles=handles, loc="lower right", frameon=False)
    figure.suptitle(f"Roofline of the course: {course.title}", x=0.065, ha="left", fontsize=11)
    return figure


# --- heat map -------------------------------------------------------------------------------------


def draw_cell(axes, left, top, percent):
    if percent is None:
        axes.text(left + 0.5, top + 0.5, "–", ha="center", va="center", color=FAINT)
        return
    shade = SHADES(min(percent, 100) / 100)
    axes.add_patch(Rectangle((left, top), 1, 1, facecolor=shade, edgecolor="white", lw=1.5))
    ink = "white" if percent > 55 else INK
    axes.text(left + 0.5, top + 0.5, f"{percent:.0f}", ha="center", va="center", color=ink)


def draw_column(axes, groups):
    """Groups one below another: a row's name, its own cell, the best peer's, the peer's name."""
    axes.axis("off")
    for left, heading in enumerate(["quire", "best peer"]):
        axes.text(left + 0.5, 0.55, heading, ha="center", va="center", color=FAINT)
    top = 0.0
    for group, rows in groups:
        axes.text(-3.1, top + 0.55, group.title, va="center", weight="bold", color=group.colour)
        top += 1.1
        for row in rows:
            axes.text(-0.15, top + 0.5, row.name, ha="right", va="center")
            draw_cell(axes, 0, top, row.percent)
            draw_cell(axes, 1, top, row.peer_percent)
            axes.text(2.2, top + 0.5, row.peer, va="center", color=FAINT, fontsize=8)
            top += 1
        top += 0.4
    return top


def draw_heatmap(course):
    figure, columns = pyplot.subplots(1, 2, figsize=(10, 6.2))
    figure.subplots_adjust(left=0.02, right=0.99, top=0.93, bottom=0.02, wspace=0.03)
    groups = [(group, [row for row in course.rows if row.group is group]) for group in GROUPS]
    groups = [(group, rows) for group, rows in groups if rows]
    depth = max(draw_column(columns[0], groups[:2]), draw_column(columns[1], groups[2:]))
    for axes in columns:
        axes.set(xlim=(-3.1, 4.6), ylim=(depth, -0.2))
    title = f"% of the ceiling that bounds a row: {course.title}"
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def write(figure, path):
    """Without a date and without spaces at the ends of lines: the same file from the same rows."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    lines = [line.rstrip() + "\n" for line in text.getvalue().splitlines()]
    path.write_text("".join(lines), encoding="utf-8")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    course = Course(folder / "course.jsonl")
    with matplotlib.rc_context(STYLE):
        for name, draw in [("roofline", draw_roofline), ("heatmap", draw_heatmap)]:
            write(draw(course), folder / f"{name}.svg")


if __name__ == "__main__":
    main()
