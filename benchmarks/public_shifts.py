"""Measure verdicts on public data that others have collected, and other tools on the
same windows.

    .venv/bin/python benchmarks/public_shifts.py
    .venv/bin/python benchmarks/public_shifts.py --only tables peers --share 0.1

series     series that five people annotated: the starts of shifts
estimates  estimated against realised metrics of models without labels
tables     tables in which the accuracy of a model falls: alarms, delays, red windows
peers      other tools on the windows of `tables`, with as few false alarms as ours

The script prints Markdown tables. Sets that cannot be had are named after each table.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Each core runs one process.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drifting.judging import part_options
from benchmarks.shifting.estimates import estimate_lines
from benchmarks.shifting.series import series_lines
from benchmarks.shifting.tables import peer_lines, table_lines

PARTS: dict[str, Callable[[float], Iterator[str]]] = {
    "series": series_lines,
    "estimates": estimate_lines,
    "tables": table_lines,
    "peers": peer_lines,
}
"""Each part yields the lines of its table for a share of the work."""


def main() -> None:
    options = part_options(__doc__, PARTS)
    for name in options.only or PARTS:
        for line in PARTS[name](options.share):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
