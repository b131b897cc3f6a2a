"""Public tables in windows, with the answers of a model, which becomes worse on most of
them.

The answers of NannyML's sets are part of these sets. Other sets have a model of
gradient-boosted trees, which is trained on the first windows. The next windows, which
the model has not seen, are the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.drifting.judging import Array
from benchmarks.shifting.data import public_file
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions
from projects.flight_delay import data as flight_delay

_AROUND = 3
"""A mean accuracy has seven windows: this number before and after each window."""
HARM, NO_HARM = 0.05, 0.02
"""The fall of the mean accuracy from which windows are harmful, and below which they
are unharmed.
"""


@dataclass(frozen=True, eq=False)
class Windowed:
    """The rows of a table in order of time.

    Attributes:
        inputs: one column per input of the model.
        truth: [N] int64, indices into the classes of the answers.
        counts: the number of rows of each window, [W] int64.
        reference: the number of windows of the reference, which are the first.
    """

    inputs: pa.Table
    answers: ClassPredictions
    truth: Array
    counts: Array
    reference: int

    @property
    def table(self) -> pa.Table:
        """The inputs and the outputs, as an inference log has them."""
        table = self.inputs.append_column("prediction", pa.array(self.answers.predicted))
        for name, chances in self.outputs.items():
            table = table.append_column(name, pa.array(chances))
        return table

    @property
    def outputs(self) -> dict[str, Array]:
        """The probability of each class; of two, that of the second."""
        chances = self.answers.probabilities
        assert chances is not None
        return {
            f"probability {self.answers.classes[index]}": chances[:, index]
            for index in self.answers.judged_classes
        }

    @property
    def starts(self) -> Array:
        """The first row of each window, [W] int64."""
        starts: Array = np.cumsum(self.counts) - self.counts
        return starts

    def rows(self, window: int) -> slice:
        start = int(self.starts[window])
        return slice(start, start + int(self.counts[window]))

    @property
    def accuracy(self) -> Array:
        """The accuracy of each window, [W] float64."""
        hits = self.truth == self.answers.predicted
        shares: Array = np.add.reduceat(hits, self.starts, dtype=np.float64) / self.counts
        return shares

    @property
    def usual(self) -> float:
        """The mean accuracy of the windows of the reference."""
        return float(self.accuracy[: self.reference].mean())


def fallen(windowed: Windowed) -> Array:
    """Return by how much the mean accuracy of seven windows around each judged window
    is below the reference's, [W - reference] float64.
    """
    judged = windowed.accuracy[windowed.reference :]
    width = 2 * _AROUND + 1
    means = pd.Series(judged).rolling(width, center=True, min_periods=_AROUND + 1).mean()
    below: Array = windowed.usual - means.to_numpy()
    return below


def harmful_stretches(below: Array) -> list[range]:
    """Return the stretches of at least seven windows that begin with a harmful window
    and end before the next unharmed one. Shorter ones may be noise of the mean.

    Args:
        below: the fall of the mean accuracy at each window, [N] float64.
    """
    stretches = []
    begun = -1
    for window, fall in enumerate(below.tolist()):
        if begun < 0 and fall >= HARM:
            begun = window
        elif begun >= 0 and fall < NO_HARM:
            stretches.append(range(begun, window))
            begun = -1
    if begun >= 0:
        stretches.append(range(begun, len(below)))
    return [stretch for stretch in stretches if len(stretch) > 2 * _AROUND]


def _windowed(
    inputs: pd.DataFrame,
    labels: Array,
    answers: tuple[Array, Array],
    classes: tuple[str, ...],
    numbers: Array,
    reference: int,
) -> Windowed:
    """Return the windows of rows that are sorted by the numbers of their windows; the
    answers are classes, and probabilities, [N, C].
    """
    predicted = np.searchsorted(classes, answers[0].astype(str))
    truth = np.searchsorted(classes, labels.astype(str))
    return Windowed(
        pa.Table.from_pandas(inputs, preserve_index=False),
        ClassPredictions(predicted, answers[1], classes),
        truth,
        np.unique_counts(numbers).counts,
        reference,
    )


def _trained(
    load: Callable[[], tuple[pd.DataFrame, Array, Array]], training: int, reference: int
) -> Windowed:
    """Return the windows after the training windows. `load` returns the inputs, the
    labels of two classes and the number of each row's window.
    """
    inputs, labels, numbers = load()
    is_training = numbers < training
    features = inputs.astype(dict.fromkeys(inputs.select_dtypes("object"), "category"))
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(features[is_training], labels[is_training])
    chances = model.predict_proba(features[~is_training])
    answers = model.classes_[chances.argmax(axis=1)], chances
    classes = tuple(map(str, model.classes_.tolist()))
    rest = inputs[~is_training]
    return _windowed(rest, labels[~is_training], answers, classes, numbers[~is_training], reference)


def _rows_of(name: str, length: int) -> tuple[pd.DataFrame, Array, Array]:
    table = pd.read_csv(public_file(name))
    table = table[: len(table) // length * length]
    return table.drop(columns="target"), table["target"].to_numpy(np.int64), table.index // length


def _flights() -> tuple[pd.DataFrame, Array, Array]:
    flights = flight_delay.months(flight_delay.load_flights(), 1, 12)
    days = (flights[flight_delay.DAY] - flights[flight_delay.DAY].min()).dt.days
    columns = [*flight_delay.FEATURES]
    inputs = flights[columns].astype(dict.fromkeys(flight_delay.CATEGORIES, "object"))
    return inputs, flights[flight_delay.LABEL].to_numpy(np.int64), days.to_numpy()


def _answered(
    name: str, label: str, answer: str, left_out: tuple[str, ...], length: int | None
) -> Windowed:
    """Return a set of NannyML with its answers, in windows of this number of rows, or
    of a day.
    """
    read = pd.read_parquet if name in ("hotels", "employment") else pd.read_csv
    reference, later = (read(public_file(f"{name} {part}")) for part in ("reference", "later"))
    if label not in later:
        later = later.merge(read(public_file(f"{name} targets")), on="id")
    if length is None:
        days = pd.to_datetime(pd.concat([reference, later])["timestamp"]).dt.date
        numbers = pd.factorize(days)[0]
        windows = numbers[len(reference) - 1] + 1
    else:
        windows = len(reference) // length
        reference = reference[: windows * length]
        later = later[: len(later) // length * length]
        numbers = np.arange(len(reference) + len(later)) // length
    table = pd.concat([reference, later], ignore_index=True)
    columns = [column for column in table if "proba" in column]
    chances = table[columns].to_numpy(np.float64)
    classes = tuple(column.removeprefix("y_pred_proba_") for column in columns)
    if len(columns) == 1:
        chances = np.hstack([1 - chances, chances])
        classes = ("0", "1")
    order = np.argsort(classes)
    inputs = table.drop(columns=[*columns, *left_out, label, answer])
    answers = table[answer].to_numpy(), chances[:, order]
    names = tuple(sorted(classes))
    labels = table[label].to_numpy()
    if table[label].dtype.kind in "fi":
        labels = labels.astype(np.int64)
    return _windowed(inputs, labels, answers, names, numbers, int(windows))


SETS: dict[str, Callable[[], Windowed]] = {
    "credit cards (simulated), 600 rows": partial(
        _answered, "cards", "y_true", "y_pred", ("id", "timestamp"), 600
    ),
    "Elec2, prices, 48 rows a day": partial(_trained, partial(_rows_of, "elec2", 48), 90, 91),
    "Offutt, rain, 30 days": partial(_trained, partial(_rows_of, "weather", 30), 60, 90),
    "New York, delays, days": partial(_trained, _flights, 60, 60),
    "hotels, cancelled, days": partial(
        _answered, "hotels", "is_canceled", "y_pred", ("timestamp",), None
    ),
    "Massachusetts, employed, 1,400 rows": partial(
        _answered, "employment", "employed", "prediction", ("id", "year"), 1_400
    ),
    "California, houses, 60 rows": partial(
        _answered, "housing", "clf_target", "y_pred", ("id", "timestamp"), 60
    ),
    "car loans (simulated), 500 rows": partial(
        _answered, "loans", "repaid", "y_pred", ("id", "timestamp"), 500
    ),
}
