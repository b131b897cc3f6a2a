"""Measure how reliable verdicts are: false alarms, and when changes are found.

    .venv/bin/python benchmarks/drift.py --share 0.1   # some minutes on two cores
    .venv/bin/python benchmarks/drift.py --only years

windows    single windows at a nominal rate of 5 %, next to a test per column
years      days with a budget of one false alarm per year: alarms, delays, red days
intervals  how often the intervals of `performance` contain the true value

The script prints each figure with its 95 % interval. A target is met if the figure is
inside it, and missed if the whole interval is outside. No setting is tuned on these
windows: the seeds are fixed.
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

PARTS = ("windows", "years", "intervals")
"""The modules of `benchmarks/drifting`. Each has a function `lines(share)`."""
_HEAD = "| | measured; 95 % interval | target | outcome |\n|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    parser.add_argument("--share", type=float, default=1.0, help="share of the windows")
    options = parser.parse_args()
    for name in PARTS:
        if options.only in (None, name):
            started = time.perf_counter()
            print(f"\n## {name}\n\n{'' if name == 'intervals' else _HEAD}", flush=True)
            part = importlib.import_module(f"benchmarks.drifting.{name}")
            for line in part.lines(options.share):
                print(line, flush=True)
            print(f"\n({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
