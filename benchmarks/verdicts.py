"""Measure verdicts over time: false alarms per year with a budget, delays, onsets,
relations, labels, effects on predictions and costs; red windows, unequal numbers of
rows, moving columns and incidents of single days.

    .venv/bin/python benchmarks/verdicts.py                  # on two cores
    .venv/bin/python benchmarks/verdicts.py --only levels    # or another of PARTS
    .venv/bin/python benchmarks/verdicts.py --share 0.1      # a tenth of the streams

The script prints tables: each figure with its 95 % interval, its target and the
outcome. No setting is tuned on these streams: the seeds are fixed.
"""

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # each core runs one process
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PARTS = (
    "levels",
    "unequal",
    "red",
    "moving",
    "dependent",
    "incidents",
    "segments",
    "relations",
    "labels",
    "effects",
    "cost",
)
"""The modules of `benchmarks/over_time`. Each has a function `lines(share)` that yields
`judging.Line`s.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the streams, such as 0.3 on a busy machine",
    )
    options = parser.parse_args()
    for name in PARTS:
        if options.only not in (None, name):
            continue
        started = time.perf_counter()
        print(
            f"\n## {name}\n\n| | measured; 95 % interval | target | outcome |\n|---|---|---|---|",
            flush=True,
        )
        for line in importlib.import_module(f"benchmarks.over_time.{name}").lines(options.share):
            print(line, flush=True)
        print(f"\n({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
