"""Measure how reliable the drift verdict is: false alarms, detected changes and costs,
compared with other methods.

    .venv/bin/python benchmarks/drift.py            # about ten minutes on two cores
    .venv/bin/python benchmarks/drift.py --only calm        # or another of PARTS
    # a tenth of the windows, in two minutes
    .venv/bin/python benchmarks/drift.py --share 0.1

The script prints tables with targets: each share with its 95 % interval. A target is
met if the share is inside it, and missed if the whole interval is outside. Otherwise
the outcome is uncertain. No setting is tuned on these windows: the seeds are fixed, and
the shares are of all judged windows. If a part fails, the script reports it and
continues.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # each core runs one process
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drifting import alarms, cost, covering, cycles, obvious, power, slow, vectors  # noqa: E402
from benchmarks.drifting.judging import Line  # noqa: E402

_HEAD = "called drifted; 95 % interval | target | outcome |\n|---|---|---|---|"


def show_alarms(lines: Iterator[Line]) -> None:
    print(f"| false alarms, nominal 5 % | {_HEAD}", flush=True)
    for line in lines:
        print(line, flush=True)


def show_intervals(share: float) -> None:
    for row in covering.of_intervals(share):
        print(row, flush=True)


def show_injected(share: float) -> None:
    lines: list[Line] = []
    for row in power.injected(share, lines):
        print(row, flush=True)
    print(f"\n| power, ours, contiguous | {_HEAD}")
    for line in lines:
        print(line)


def show_months(share: float) -> None:
    for row in power.months(share):
        print(row, flush=True)


PARTS: dict[str, Callable[[float], None]] = {
    "splits": lambda share: show_alarms(alarms.of_splits(share)),
    "calm": lambda share: show_alarms(alarms.of_calm_time(share)),
    "cycles": lambda share: show_alarms(cycles.of_cycles(share)),
    "slow": lambda share: show_alarms(slow.of_slow_time(share)),
    "obvious": lambda share: show_alarms(obvious.of_obvious_changes(share)),
    "vectors": lambda share: show_alarms(vectors.of_vectors(share)),
    "intervals": show_intervals,
    "injected": show_injected,
    "months": show_months,
    "cost": lambda share: cost.show(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=sorted(PARTS), help="run only this part")
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the windows, such as 0.3 on a busy machine",
    )
    options = parser.parse_args()
    failed = []
    for name, show in PARTS.items():
        if options.only in (None, name):
            started = time.perf_counter()
            print(f"\n## {name}\n", flush=True)
            try:
                show(options.share)
            except Exception:  # noqa: BLE001 - a part that fails must not waste the time of the other parts
                traceback.print_exc()
                failed.append(name)
            print(
                f"\n{time.perf_counter() - started:.0f} s, load average {os.getloadavg()[0]:.0f}",
                flush=True,
            )
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
