"""Run the short forms of the benchmarks within ten minutes on two cores. Their tables
are written into `figures.json`, which also has the figures of README.md and RESULTS.md.

    make bench
    .venv/bin/python benchmarks/bench.py --only serve start
    .venv/bin/python benchmarks/bench.py --minutes 3
    # a section of RESULTS.md, from the complete run of its script
    .venv/bin/python benchmarks/bench.py --record "Swaps under load" swap.py --swaps 20
    # after an edit of README.md or RESULTS.md
    .venv/bin/python benchmarks/bench.py --pages

The machine is measured first, and compared with the one of `--reference`: a machine
that is slower, or busy, needs more time for everything, so compare ratios. Each part is
another script with few rounds; run the script itself for more. A peer that is not
installed has a row that says how to install it. The last part, coverage, judges models
in the time that is left.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# numba would import coverage.py of this folder
sys.path.remove(str(Path(__file__).resolve().parent))

from benchmarks import figures, machine
from benchmarks.figures import ROOT, Cells

LEAST_SECONDS = 20
CLOSING_SECONDS = 75
"""The time that coverage needs for the models that it judges at the end of its time."""


@dataclass(frozen=True)
class Part:
    """The short form of a script.

    Attributes:
        heading: its section of RESULTS.md.
        seconds: after this time, it is stopped, and its last rows are missing.
    """

    heading: str
    command: str
    seconds: float = 90.0


_SERVING = "Serving, beside what others use"
_COVERAGE = "What converts, and whether it answers as its original"
PARTS = {
    "serve": Part(_SERVING, "serve.py --only one-row --rounds 3 --no-install", 110.0),
    "poisson": Part(
        _SERVING,
        "serve.py --only one-row --arrivals poisson --seconds 1 --peers fastapi --no-install",
    ),
    "start": Part("Start of one model", "serve.py --only start --rounds 3 --no-install"),
    "memory": Part(
        "Several models on one server",
        "serve.py --only memory --seconds 1 --models 1 --peers mlserver bentoml --no-install",
        60.0,
    ),
    "path": Part("The way of a request", "request_path.py", 60.0),
    "swap": Part("Swaps under load", "swap.py --swaps 5 --seconds 2", 60.0),
    "boosters": Part("Boosters as ONNX, beside their libraries", "boosters.py HistGradient", 60.0),
    "explain": Part("Explanations", "explain.py --rows 500", 60.0),
    "shifts": Part("Public data", "public_shifts.py --only series --share 0.2", 60.0),
    "plain": Part("Other converters", "coverage.py --plain --only booster", 60.0),
    "coverage": Part(_COVERAGE, "coverage.py", 600.0),
}
LONGER = (
    "images.py (needs Docker)",
    "drift.py --share 0.1",
    "public_shifts.py --only tables peers",
    "coverage.py --gallery",
)


@dataclass(frozen=True)
class Printed:
    """The rows of all tables that a script printed, and its remarks: peers that are not
    installed, or the end of its errors.
    """

    rows: list[Cells]
    remarks: list[str]


def run(command: Sequence[str], seconds: float | None) -> Printed:
    """Run a script of this folder, with its progress on stderr."""
    with subprocess.Popen(
        [sys.executable, f"benchmarks/{command[0]}", *command[1:]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if seconds else None,
        text=True,
    ) as script:
        try:
            output, errors = script.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            script.send_signal(signal.SIGINT)  # The script then ends its servers.
            output, errors = script.communicate()
            errors = f"it was stopped after {seconds:.0f} s"
    rows = [row for table in figures.tables(output) for row in table]
    remarks = re.findall(r"^- (.*: install it .*)", output, re.MULTILINE)
    if script.returncode:
        last = ((errors or "").strip() or output.strip()).splitlines()[-1:]
        remarks.append(f"exit status {script.returncode}: {''.join(last)[:120]}")
    return Printed(rows, remarks)


def short_forms(names: Sequence[str], minutes: float) -> None:
    """Run the parts within the time, print their tables, and write them into the
    file.
    """
    end = time.monotonic() + 60 * minutes
    here = machine.describe()
    measured = machine.speed()
    reference = figures.read()["reference"]
    slower = machine.slowness(measured, reference["speed"])
    disturbed = machine.disturbance(measured)
    there = f"{reference['date']}, {reference['cpu']}"
    here |= {"slowness": round(slower, 2), "disturbance": round(disturbed, 2)}
    print(f"{here['cpu']}, {here['cores']} cores, Python {here['python']}, load {here['load']}.")
    print(f"It takes {slower:.2f} times as long as the reference ({there});", end=" ")
    print(f"a median run takes {disturbed:.2f} times as long as the fastest.")
    for name in names:
        part = PARTS[name]
        left = min(end - time.monotonic(), part.seconds)
        command = part.command.split()
        if left < LEAST_SECONDS:
            print(f"\n{name}: no time was left: --only {name}", flush=True)
            continue
        if name == "coverage":
            command += ["--seconds", str(round(max(left - CLOSING_SECONDS, 1)))]
        printed = run(command, left)
        print(f"\n**{name}**: `{part.command}`", *printed.remarks, sep="\n- ")
        print("\n" + _markdown(printed.rows), flush=True)
        _write(part.heading, "short", name, _measurement(part.command, here, printed.rows))
    print(f"\nNot among the short forms: {', '.join(LONGER)}.")
    taken = minutes + (time.monotonic() - end) / 60
    print(
        f"{taken:.1f} minutes; figures.json has the figures. The load is {os.getloadavg()[0]:.1f}."
    )


def _measurement(command: str, here: dict[str, Any], rows: list[Cells]) -> dict[str, Any]:
    return {"command": f"python benchmarks/{command}", "machine": here, "rows": rows}


def _write(heading: str, kind: str, name: str, measurement: dict[str, Any]) -> None:
    document = figures.read()
    section = document["sections"].setdefault(heading, {})
    section.setdefault(kind, {})[name] = measurement
    figures.write(document)


def _markdown(rows: list[Cells]) -> str:
    lines = []
    heads: list[str] = []
    for row in rows:
        if [*row] != heads:
            heads = [*row]
            lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines.append(f"| {' | '.join(row.values())} |")
    return "\n".join(lines)


def record(heading: str, command: Sequence[str]) -> None:
    """Run a script to its end, and write the rows that it prints into the section."""
    here = machine.describe()
    printed = run(command, None)
    print("\n".join([*printed.remarks, _markdown(printed.rows)]))
    if not printed.rows:
        raise SystemExit("the script printed no table, so the file is as before")
    words = " ".join(command)
    _write(heading, "printed", words, _measurement(words, here, printed.rows))


def write_pages() -> None:
    """Write the figures of the pages, and remove sections that no page has."""
    document = figures.read()
    sections = document["sections"]
    pages = figures.pages()
    document["sections"] = {name: {**sections.get(name, {}), "page": pages[name]} for name in pages}
    figures.write(document)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[*PARTS], help="run only these parts")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--record", metavar="HEADING", help="a section for the following command")
    parser.add_argument("--pages", action="store_true", help="only read README.md and RESULTS.md")
    parser.add_argument("--reference", action="store_true", help="compare others with this machine")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.record:
        record(options.record, options.command)
    elif options.reference:
        reference = {**machine.describe(), "speed": machine.speed()}
        figures.write({**figures.read(), "reference": reference})
    elif options.pages:
        write_pages()
    else:
        short_forms(options.only or [*PARTS], options.minutes)


if __name__ == "__main__":
    main()
