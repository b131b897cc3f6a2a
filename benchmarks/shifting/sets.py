"""Public tables in windows, with the answers of a model that becomes worse on most of
them.

NannyML's sets have answers. For other sets, boosted trees are trained on the first
windows, and the next windows are the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.drifting.judging import Array
from benchmarks.shifting.data import public_file
from projects.flight_delay import data as flight_delay

HARM, NO_HARM = 0.05, 0.02
"""The fall of the mean accuracy from which windows are harmful, and below which they
are unharmed.
"""
EARLIER = 8
"""The most windows with labels for an estimate, as in `kinds/performance.py`."""
_WIDTH = 7
"""The windows of a mean accuracy, and the fewest windows of a harmful shift."""


@dataclass(frozen=True, eq=False)
class Windowed:
    """A set in windows.

    Attributes:
        rows: in time: the inputs, `prediction` and the label `truth` as indices into
            the `classes`, `probability CLASS`, and `window`, the number of the window.
        reference: the number of windows of the reference, which are the first.
    """

    rows: pd.DataFrame
    classes: tuple[str, ...]
    reference: int

    @cached_property
    def windows(self) -> list[pd.DataFrame]:
        return [window for _, window in self.rows.groupby("window")]

    @cached_property
    def accuracy(self) -> Array:
        """The accuracy of each window, [W] float64."""
        return np.array([(each["truth"] == each["prediction"]).mean() for each in self.windows])

    @property
    def usual(self) -> float:
        """The mean accuracy of the windows of the reference."""
        return float(self.accuracy[: self.reference].mean())

    @property
    def fall(self) -> Array:
        """How far the mean accuracy of seven windows around each judged window is below
        the usual one, [W - reference] float64.
        """
        judged = pd.Series(self.accuracy[self.reference :])
        means = judged.rolling(_WIDTH, center=True, min_periods=_WIDTH // 2 + 1).mean()
        fall: Array = self.usual - means.to_numpy()
        return fall


def harmful_shifts(fall: Array) -> list[range]:
    """Return the stretches of at least seven windows that have a harmful window and no
    unharmed one. Shorter stretches may be noise.

    Args:
        fall: the fall of the mean accuracy at each window, [N] float64.
    """
    is_fallen = np.concatenate([[False], fall >= NO_HARM, [False]])
    edges = np.flatnonzero(np.diff(is_fallen)).reshape(-1, 2)
    stretches = [range(start, stop) for start, stop in edges.tolist()]
    return [
        stretch
        for stretch in stretches
        if len(stretch) >= _WIDTH and fall[stretch.start : stretch.stop].max() >= HARM
    ]


def _with_answers(inputs: pd.DataFrame, classes: tuple[str, ...], chances: Array) -> pd.DataFrame:
    """Return the inputs and the probabilities, [N, C]; of two classes, the second's."""
    first = 1 if len(classes) == 2 else 0
    names = [f"probability {name}" for name in classes[first:]]
    return inputs.assign(**dict(zip(names, chances[:, first:].T, strict=True)))


def _trained(table: pd.DataFrame, training: int, reference: int) -> Windowed:
    """Return the windows after the training windows. The table has inputs, the label
    `target`, 0 or 1, and `window`.
    """
    inputs = table.drop(columns=["target", "window"])
    features = inputs.astype(dict.fromkeys(inputs.select_dtypes("object"), "category"))
    is_late = table["window"] >= training
    model = HistGradientBoostingClassifier(random_state=0)
    model.fit(features[~is_late], table["target"][~is_late])
    chances = model.predict_proba(features[is_late])
    rows = _with_answers(inputs[is_late], ("0", "1"), chances).assign(
        prediction=chances.argmax(axis=1),
        truth=table["target"][is_late].astype(np.int64),
        window=table["window"][is_late] - training,
    )
    return Windowed(rows, ("0", "1"), reference)


def _table(name: str, rows: int) -> pd.DataFrame:
    table = pd.read_csv(public_file(name))
    return table[: len(table) // rows * rows].assign(window=lambda each: each.index // rows)


def _flights() -> pd.DataFrame:
    flights = flight_delay.months(flight_delay.load_flights(), 1, 12)
    days = (flights[flight_delay.DAY] - flights[flight_delay.DAY].min()).dt.days
    inputs = flights[[*flight_delay.FEATURES]]
    inputs = inputs.astype(dict.fromkeys(flight_delay.CATEGORIES, "object"))
    return inputs.assign(target=flights[flight_delay.LABEL], window=days)


def read_parts(name: str, label: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the reference and the later rows of a set of NannyML, with labels."""
    reference, later = (_read(f"{name} {part}") for part in ("reference", "later"))
    if label not in later:
        later = later.merge(_read(f"{name} targets"), on="id")
    return reference, later


def _read(name: str) -> pd.DataFrame:
    path = public_file(name)
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    return pd.read_parquet(path) if is_parquet else pd.read_csv(path)


def _answered(name: str, label: str, answer: str, rows: int) -> Windowed:
    """Return a set of NannyML with its answers, in windows of this number of rows, or
    of a day if it is 0.
    """
    reference, later = read_parts(name, label)
    if rows:
        reference = reference[: len(reference) // rows * rows]
        later = later[: len(later) // rows * rows]
    table = pd.concat([reference, later], ignore_index=True)
    numbers = np.arange(len(table)) // max(rows, 1)
    if not rows:
        numbers = pd.factorize(pd.to_datetime(table["timestamp"]).dt.date)[0]
    columns = sorted(table.filter(like="proba").columns.astype(str))
    classes = tuple(column.removeprefix("y_pred_proba_") for column in columns)
    chances = table[columns].to_numpy(np.float64)
    if len(columns) == 1:
        classes = ("0", "1")
        chances = np.hstack([1 - chances, chances])
    indices = {name: index for index, name in enumerate(classes)}
    truth = table[label].astype(table[answer].dtype)
    left_out = {"id", "timestamp", "year", label, answer, *columns}
    found = _with_answers(
        table.drop(columns=table.columns.intersection([*left_out])), classes, chances
    ).assign(
        prediction=table[answer].astype(str).map(indices),
        truth=truth.astype(str).map(indices),
        window=numbers,
    )
    return Windowed(found, classes, int(numbers[len(reference) - 1]) + 1)


SETS: dict[str, Callable[[], Windowed]] = {
    "California, houses, 60 rows": partial(_answered, "housing", "clf_target", "y_pred", 60),
    "credit cards (simulated), 600 rows": partial(_answered, "cards", "y_true", "y_pred", 600),
    "car loans (simulated), 500 rows": partial(_answered, "loans", "repaid", "y_pred", 500),
    "hotels, cancelled, days": partial(_answered, "hotels", "is_canceled", "y_pred", 0),
    "Massachusetts, employed, 1,400 rows": partial(
        _answered, "employment", "employed", "prediction", 1_400
    ),
    "Elec2, prices, 48 rows a day": lambda: _trained(_table("elec2", 48), 90, 91),
    "Offutt, rain, 30 days": lambda: _trained(_table("weather", 30), 60, 90),
    "New York, delays, days": lambda: _trained(_flights(), 60, 60),
}
