"""Measure moves of judged versions through MLflow's server with the gate, and count the
moves without an event while the store restarts.

    .venv/bin/python benchmarks/moves.py                     # about two minutes
    .venv/bin/python benchmarks/moves.py --against /path/to/a/checkout
    .venv/bin/python benchmarks/moves.py --restarts 3        # about two minutes
    .venv/bin/python benchmarks/moves.py --restarts 3 --both

Two clients move one alias each between two versions that have passed the gate, with the
store on SQLite and on PostgreSQL. The server signs its events. With `--against`, the
servers of both checkouts alternate, and the ratio of a round is the time of this
checkout divided by the time of the other one: on a busy machine, only ratios count.

With `--restarts`, one client moves an alias and one a stage, 300 times together, while
PostgreSQL stops and starts again: at once, after 2 s and after 8 s, in turn with
`pg_ctl -m immediate` and `-m fast`. MLflow's own tables are in SQLite, or with `--both`
in another database of the same server. After each answer, the clients read which
version has the place. The exit status is 1 if an answer 200 has no event, if an event
has no answer 200, if another answer moved a version, or if the trail is not intact.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg

os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    GIT_PYTHON_REFRESH="quiet",
    OMP_NUM_THREADS="1",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
)
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.moves import JudgedModel, judged_model, moves_while_restarting
from tests.support.services.postgresql import running_postgresql

CHECKOUT = Path(__file__).resolve().parents[1]
ALIASES = "@champion", "@challenger"
ROUND = 10
"""The moves of a client in a round."""


def seconds_of_round(model: JudgedModel) -> float:
    """Return the seconds in which both clients have made the moves of a round."""

    def move(place: str) -> None:
        client = JudgedModel(model.server)
        for number in range(ROUND):
            status = client.move(place, str(1 + number % 2))
            assert status == 200, status

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(move, ALIASES))
    return time.perf_counter() - began


def measure(database: str, checkouts: list[Path], rounds: int) -> None:
    """Print the moves per second of each checkout, and the ratio of the times of the
    first one to the second one.
    """
    with ExitStack() as stack:
        models = []
        for checkout in checkouts:
            store = ""
            if database == "PostgreSQL":
                store = stack.enter_context(running_postgresql()).url
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models.append(stack.enter_context(judged_model(folder, store, (), checkout)))
        taken: list[list[float]] = [[] for _ in models]
        order = [*range(len(models))]
        for _ in range(rounds + 1):
            order.reverse()
            for place in order:
                taken[place].append(seconds_of_round(models[place]))
    taken = [seconds[1:] for seconds in taken]  # The first round also fills caches.
    for checkout, seconds in zip(checkouts, taken, strict=True):
        rate = 2 * ROUND / statistics.median(seconds)
        print(f"{database}, {checkout}: {rate:.1f} moves per second, {rounds} rounds")
    if len(taken) == 2:
        ratios = [mine / other for mine, other in zip(*taken, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{database}: {middle:.2f} times as long, half of the rounds {low:.2f}-{high:.2f}")


def count_moves(checkout: Path, restarts: int, is_both: bool) -> bool:
    """Print the answers and events of the moves while PostgreSQL restarts. Return True
    if each move has its event.
    """
    with running_postgresql() as database, tempfile.TemporaryDirectory() as folder:
        options: tuple[str, ...] = ()
        if is_both:
            url = database.url.replace("+psycopg", "")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE mlflow")
            options = ("--backend-store-uri", database.url.removesuffix("postgres") + "mlflow")
        with judged_model(Path(folder), database.url, options, checkout) as model:
            report = moves_while_restarting(model, database, restarts)
    print(report)
    return report.is_complete


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--checkout", type=Path, default=CHECKOUT, help="the measured checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--restarts", type=int, default=0, help="restarts of PostgreSQL")
    parser.add_argument("--both", action="store_true", help="MLflow's tables in PostgreSQL too")
    options = parser.parse_args()
    if options.restarts:
        return 0 if count_moves(options.checkout, options.restarts, options.both) else 1
    checkouts = [options.checkout.resolve()]
    if options.against:
        checkouts.append(options.against.resolve())
    for database in ("SQLite", "PostgreSQL"):
        measure(database, checkouts, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
