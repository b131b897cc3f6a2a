"""How often the drift verdict is wrong, and how often right, on real traffic: a day of New York's flights at a time.

    .venv/bin/python -m benchmarks.drift            # about two minutes on two cores

Reference: January to March 2013, less ten whole days that a seed holds out. A day is judged by flights joined with the
hourly weather at their origin, by the features of `projects/flight_delay`: the date, and everything that is known only
after departure, is none of them. Printed are the share of held-out days called
drifted (false alarms, nominally 5 %) over many seeds, and the share of every second day of each later month.
"""

import time

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlflow_deploy_plugin.monitoring.features import Feature
from mlflow_deploy_plugin.monitoring.paired import judge
from mlflow_deploy_plugin.monitoring.verdict import Verdict
from projects.flight_delay.data import BOOLEANS, CATEGORIES, DAY, INTEGERS, WEATHER, load_flights

REFERENCE_DAYS = 90
RATE = 0.05
MIN_ROWS = 200
Days = npt.NDArray[np.int64]


def load() -> pd.DataFrame:
    """The flights of the project with `number`, that of their day (UTC) since January 1st."""
    flights = load_flights()
    return flights.assign(number=(flights[DAY] - pd.Timestamp("2013-01-01", tz="UTC")).dt.days)


def features(frame: pd.DataFrame) -> list[Feature]:
    numbers = [Feature(name, "number", frame[name].to_numpy(np.float64)) for name in (*INTEGERS, *WEATHER)]
    texts = [Feature(name, "category", frame[name].astype(str).to_numpy(object)) for name in (*CATEGORIES, *BOOLEANS)]
    return numbers + texts


class Season:
    """One choice of held-out days: its reference, and a judge of any other day."""

    def __init__(self, frame: pd.DataFrame, seed: int, reference_rows: int | None) -> None:
        rng = np.random.default_rng(seed)
        self.held = sorted(int(day) for day in rng.choice(REFERENCE_DAYS, 10, replace=False))
        reference = frame[(frame["number"] < REFERENCE_DAYS) & ~frame["number"].isin(self.held)]
        if reference_rows is not None:
            reference = reference.iloc[np.sort(rng.choice(len(reference), reference_rows, replace=False))]
        self.reference = features(reference)
        self.times: Days = reference["number"].to_numpy(np.int64)
        self.frame = frame

    def judge(self, day: int) -> Verdict:
        pairs = list(zip(self.reference, features(self.frame[self.frame["number"] == day]), strict=True))
        return judge(pairs, self.times, day, 1, MIN_ROWS, RATE)


def false_alarms(frame: pd.DataFrame, seeds: int, reference_rows: int | None) -> None:
    shares, summer, measured = [], [], []
    for seed in range(seeds):
        season = Season(frame, seed, reference_rows)
        calm = [season.judge(day) for day in season.held]
        shares.append(np.mean([verdict.state == "drift" for verdict in calm]))
        measured.append(calm[0].measured_false_alarm_rate)
        days = np.random.default_rng(seed).choice(np.arange(151, 243), 4, replace=False)  # June 1st to August 31st
        summer += [season.judge(int(day)).state == "drift" for day in days]
    rows = f"{reference_rows:,}" if reference_rows else "all"
    print(
        f"reference rows {rows:>6}: {seeds} seeds x 10 held-out days: {np.mean(shares):6.1%} called drifted "
        f"(nominal {RATE:.0%}; the worst seed {np.max(shares) * 10:.0f} of 10); measured by the job itself "
        f"{np.mean([rate for rate in measured if rate is not None]):.1%}; June to August {np.mean(summer):.0%}"
    )


def months(frame: pd.DataFrame, seed: int) -> None:
    season = Season(frame, seed, None)
    month_of = frame.groupby("number")[DAY].first().dt.month
    called: dict[int, list[bool]] = {}
    for day in range(REFERENCE_DAYS, int(frame["number"].max()), 2):
        called.setdefault(int(month_of[day]), []).append(season.judge(day).state == "drift")
    calm = [season.judge(day).state == "drift" for day in season.held]
    print(f"seed {seed}: held-out days of January to March: {sum(calm)} of {len(calm)} called drifted")
    for month, flags in called.items():
        print(f"  {pd.Timestamp(2013, month, 1):%B}: {sum(flags)} of {len(flags)} days ({np.mean(flags):.0%})")


def main() -> None:
    started = time.perf_counter()
    frame = load()
    months(frame, seed=0)
    false_alarms(frame, seeds=20, reference_rows=None)
    false_alarms(frame, seeds=10, reference_rows=10_000)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
