"""Compare the time of a gated move in this checkout with that in another one: an alias
moves between two judged versions, one request after the other.

    # a worktree of an earlier commit, about two minutes
    .venv/bin/python benchmarks/moves.py ../before

Each checkout runs a real MLflow server that signs its audit events, with the store in
SQLite and in PostgreSQL. The rounds of the two servers alternate. The exit status is 1
if the ratio of a store is above 1.2.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.moves import JudgedModel, judged_model
from tests.support.services.postgresql import postgresql_server

OWN = Path(__file__).parents[1]
MOST = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="folder of the earlier checkout")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--moves", type=int, default=20, help="moves per round")
    options = parser.parse_args()
    print("| store | before, ms | now, ms | ratio |\n|---|---|---|---|")
    ratios = [_compare(options, store) for store in ("SQLite", "PostgreSQL")]
    return int(max(ratios) > MOST)


def _compare(options: argparse.Namespace, store: str) -> float:
    """Print a row of the table, and return the ratio of the medians."""
    times: dict[Path, list[float]] = {options.before.resolve(): [], OWN: []}
    with ExitStack() as stack:
        models = {}
        for checkout in times:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = stack.enter_context(postgresql_server()) if store == "PostgreSQL" else ""
            served = judged_model(Path(folder), url, checkout=checkout)
            models[checkout] = stack.enter_context(served)
        for _ in range(options.rounds):
            for checkout, model in models.items():
                times[checkout].append(_milliseconds(model, options.moves))
    before, now = (statistics.median(measured[1:]) for measured in times.values())
    print(f"| {store} | {before:.1f} | {now:.1f} | {now / before:.2f} |", flush=True)
    return now / before


def _milliseconds(model: JudgedModel, count: int) -> float:
    """Return the time per move."""
    versions = cycle("12")
    started = time.perf_counter()
    for _ in range(count):
        status = model.move("@champion", next(versions))
        assert status == 200, f"the move was answered with {status}"
    return (time.perf_counter() - started) / count * 1000


if __name__ == "__main__":
    sys.exit(main())
