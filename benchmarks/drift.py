"""How far the drift verdict can be trusted: false alarms, what it finds, what it costs, beside what others say.

    .venv/bin/python benchmarks/drift.py            # about six minutes on two quiet cores
    .venv/bin/python benchmarks/drift.py --only calm        # or splits, calm, injected, months, cost

Printed are tables with targets, and whether they are met. Nothing is tuned on them: the seeds are fixed, the shares are
of all windows that were judged.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # both cores have a process each
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drifting import alarms, cost, power  # noqa: E402
from benchmarks.drifting.judging import Line  # noqa: E402


def show_alarms(lines: Iterator[Line]) -> None:
    print("| false alarms, nominal 5 % | called drifted | target | holds |\n|---|---|---|---|")
    for line in lines:
        print(line, flush=True)


def show_injected(share: float) -> None:
    rows = []
    for row in power.injected(share):
        rows.append(row)
        print(row, flush=True)
    print("\n| power | ours, contiguous | target | holds |\n|---|---|---|---|")
    for line in power.targets(rows):
        print(line)


def show_months(share: float) -> None:
    for row in power.months():
        print(row, flush=True)


def show_cost(share: float) -> None:
    sys.argv = sys.argv[:1]
    cost.main()


PARTS: dict[str, Callable[[float], None]] = {
    "splits": lambda share: show_alarms(alarms.of_splits(share)),
    "calm": lambda share: show_alarms(alarms.of_calm_time(share)),
    "injected": show_injected,
    "months": show_months,
    "cost": show_cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), help="only this part")
    parser.add_argument("--share", type=float, default=1.0, help="of the windows that are made: 0.3 on a busy machine")
    options = parser.parse_args()
    for name, show in PARTS.items():
        if options.only in (None, name):
            started = time.perf_counter()
            print(f"\n## {name}\n", flush=True)
            show(options.share)
            print(f"\n{time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
