"""Measure the error of a classifier's estimated accuracy before its labels arrive, on
real flights by month.

    # about half a minute on two cores
    .venv/bin/python -m benchmarks.estimated

The delay model learns January to March 2013, except ten complete days, and predicts
each later month. The script compares the estimate that a performance monitor makes from
the model's probabilities (`watch/statistics/cbpe.py`) with the figure from the labels.
The estimate is checked and corrected on the earlier months whose labels the monitor
would have, starting with the held-out days. Then the same is done for days: every
second day of April to December, each with the eight earlier days.
"""

from statistics import mean

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.statistics.cbpe import CbpeEstimate, LabelledWindow, estimate
from mlflow_deploy_plugin.watch.statistics.intervals import MetricInterval, Sampling
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions, classification_metrics
from projects.flight_delay.data import DAY, FEATURES, LABEL, load_flights, months, split
from projects.flight_delay.fitting import fit_full

SEED = 7
NAMES = ("accuracy", "roc_auc", "f1", "log_loss")
_DAYS_BEFORE = 8
_CONFIDENCE = 0.95


def answered(pipeline: Pipeline, rows: pd.DataFrame) -> LabelledWindow:
    chances = pipeline.predict_proba(rows[list(FEATURES)])
    answers = ClassPredictions(chances.argmax(axis=1), chances, ("False", "True"))
    return LabelledWindow(rows[LABEL].to_numpy().astype(np.int64), answers)


def real(window: LabelledWindow) -> dict[str, float]:
    measured = classification_metrics(window.truth, window.answers, NAMES, Sampling(0.95))
    return {name: one.value for name, one in measured.items() if isinstance(one, MetricInterval)}


def estimated(window: LabelledWindow, earlier: list[LabelledWindow]) -> CbpeEstimate:
    found = estimate(window.answers, earlier, NAMES)
    assert isinstance(found, CbpeEstimate)
    return found


def half_width(guess: CbpeEstimate, name: str) -> float:
    """Return half the width of the interval that a monitor uses; NaN if there is no
    interval.
    """
    if name in guess.errors:
        return guess.errors[name].half_width(_CONFIDENCE)
    return float("nan")


def by_month(pipeline: Pipeline, flights: pd.DataFrame) -> None:
    earlier = [answered(pipeline, split(flights, SEED).calm)]
    print(
        f"{'month':>5}  "
        + "  ".join(f"{name + ' real':>14} {'estimated':>9} {'±':>6}" for name in NAMES),
    )
    for month in range(4, 13):
        window = answered(pipeline, months(flights, month, month))
        truth = real(window)
        guess = estimated(window, earlier)
        cells = [
            f"{truth[name]:14.3f} {guess.values[name]:9.3f} {half_width(guess, name):6.3f}"
            for name in NAMES
        ]
        print(f"{month:>5}  " + "  ".join(cells) + ("  corrected" if guess.is_corrected else ""))
        earlier.append(window)


def by_day(pipeline: Pipeline, flights: pd.DataFrame) -> None:
    days = months(flights, 4, 12).groupby(DAY)
    windows = [answered(pipeline, rows) for _, rows in days if rows[LABEL].nunique() == 2]
    off: dict[str, list[float]] = {name: [] for name in NAMES}
    outside: dict[str, list[bool]] = {name: [] for name in NAMES}
    beyond: dict[str, list[bool]] = {name: [] for name in NAMES}
    naive: list[float] = []
    for place in range(_DAYS_BEFORE, len(windows), 2):
        window = windows[place]
        past = windows[place - _DAYS_BEFORE : place]
        truth = real(window)
        guess = estimated(window, past)
        naive.append(abs(truth["accuracy"] - mean(real(one)["accuracy"] for one in past)))
        for name in NAMES:
            value = guess.values[name]
            assert not isinstance(value, Refused)
            off[name].append(abs(truth[name] - value))
            outside[name].append(off[name][-1] > half_width(guess, name))
            beyond[name].append(off[name][-1] > guess.errors[name].largest)
    for name in NAMES:
        print(
            f"{name:>9}: mean error of the estimate of {len(off[name])} days "
            f"{np.mean(off[name]):.3f}, outside of the interval on {np.mean(outside[name]):.0%} "
            f"(nominal: 5 %), beyond the largest error of the {_DAYS_BEFORE} days before on "
            f"{np.mean(beyond[name]):.0%} (one in nine by chance)",
        )
    print(
        f" accuracy: mean error if each day is assumed to equal the {_DAYS_BEFORE} earlier days "
        f"{np.mean(naive):.3f}",
    )


def main() -> None:
    flights = load_flights()
    pipeline = fit_full(split(flights, SEED).train, 60, 0.1)
    by_month(pipeline, flights)
    by_day(pipeline, flights)


if __name__ == "__main__":
    main()
