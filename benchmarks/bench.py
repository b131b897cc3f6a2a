"""Reproduce the figures of README.md and the main figures of RESULTS.md, within ten
minutes on two cores, as one table.

    make bench
    .venv/bin/python benchmarks/bench.py --only serve start
    .venv/bin/python benchmarks/bench.py --minutes 3

Each part is one of the other scripts with few rounds; run the script itself for more.
A peer that is not installed has a row that says how to install it. The last part,
coverage, judges models in the time that is left. A column that a script does not
measure is empty.
"""

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 20
CLOSING_SECONDS = 75
"""The time that coverage needs for the models that it judges at the end of its time."""
Cells = dict[str, str]
NONE = "no column"


@dataclass(frozen=True)
class Part:
    """A script with the columns of its tables, by the beginnings of their heads.

    Attributes:
        measured, ratio, p99: columns of the printed table; NONE: the script has none.
        unit: of the measured figure, if its column has none.
        name: the columns that name a row; empty: the first column.
    """

    command: str
    measured: str
    unit: str = ""
    ratio: str = NONE
    p99: str = NONE
    name: tuple[str, ...] = ()


PARTS = {
    "serve": Part(
        "serve.py --only one-row --rounds 3 --no-install",
        "onnxserve",
        ratio="ratio",
        p99="onnxserve",
        name=("work", "compared with"),
    ),
    "start": Part(
        "serve.py --only start --rounds 3 --no-install",
        "onnxserve",
        ratio="ratio",
        name=("work", "compared with"),
    ),
    "path": Part("request_path.py", "now, µs", " µs", p99="p99"),
    "swap": Part("swap.py --swaps 5 --seconds 2", "measured", p99="p99"),
    "boosters": Part("boosters.py HistGradient", NONE, "", "ratio", name=("model", "rows")),
    "explain": Part("explain.py --rows 500", "rows/s", " rows/s", "ratio"),
    "coverage": Part("coverage.py", "equal", " equal as ONNX", name=("of", "judged")),
}
LONGER = {
    "image with the model": "needs Docker: python benchmarks/images.py",
    "verdicts over a year": "python benchmarks/drift.py --share 0.1",
}


def tables(text: str) -> Iterator[Cells]:
    """Yield the rows of the tables of a script by the heads of their columns: lines of
    Markdown, or otherwise columns with two spaces between them.
    """
    lines = text.splitlines()
    heads: list[str] = []
    for line in [line for line in lines if line.startswith("|")] or lines:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        else:
            cells = re.split(r"\s{2,}", line.rstrip())
        if any(cell[:1].isdigit() for cell in cells):
            yield dict(zip(heads, cells, strict=False))
        elif not all(set(cell) <= set("-: ") for cell in cells):
            heads = cells


def column(row: Cells, head: str) -> str:
    return next((cell for name, cell in row.items() if name.startswith(head)), "")


def figures(part: Part, output: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of a part: name, measured, ratio, p99."""
    for row in tables(output):
        name = ", ".join(column(row, head) for head in part.name) or next(iter(row.values()))
        measured = column(row, part.measured)
        p99 = column(row, part.p99)
        if " / " in p99:
            measured, _, p99 = measured.partition(" / ")
        yield name, measured + part.unit, column(row, part.ratio), p99
    for note in re.findall(r"^- (.*): (install it .*)", output, re.MULTILINE):
        yield (*note, "", "")


def run(part: Part, seconds: float) -> Iterator[tuple[str, str, str, str]]:
    command = [sys.executable, *f"benchmarks/{part.command}".split(" ")]
    if part.command == "coverage.py":
        command += ["--seconds", str(round(max(seconds - CLOSING_SECONDS, 1)))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        try:
            output, errors = script.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            script.send_signal(signal.SIGINT)  # The script then ends its servers.
            output, errors = script.communicate()
            errors += f"\nIt was stopped after {seconds:.0f} s."
    yield from figures(part, output)
    if script.returncode:
        last = errors.strip().splitlines()[-1:] or output.strip().splitlines()[-1:]
        yield part.command, f"exit status {script.returncode}: {''.join(last)[:120]}", "", ""


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{now}, {models[0]}, {cores} cores, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="run only these parts")
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    started = os.getloadavg()[0]
    print(f"{machine()}\n\n| | measured | ratio | p99 |\n|---|---|---|---|", flush=True)
    for name in options.only or PARTS:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"| {name} | no time was left: --only {name} | | |", flush=True)
            continue
        for cells in run(PARTS[name], left):
            print(f"| {name}: {' | '.join(cells)} |", flush=True)
    for name, command in LONGER.items():
        print(f"| {name} | {command} | | |")
    taken = (time.monotonic() - end) / 60 + options.minutes
    print(
        f"\nload average {started:.1f} at the start, {os.getloadavg()[0]:.1f} at the end; ", end=""
    )
    print(f"{taken:.1f} minutes")


if __name__ == "__main__":
    main()
