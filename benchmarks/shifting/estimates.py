"""Estimates of a classifier's metrics without labels of the window, on public tables
with a model's answers, next to NannyML's CBPE.

The windows have as many rows as a 24th of the reference. An estimate knows the labels
of the reference only. Two more columns also know later labels: ours with
the labels of the eight windows before, and the value of the window before.
"""

import math
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from benchmarks.drifting.judging import Array
from benchmarks.shifting.data import NotHad
from benchmarks.shifting.sets import EARLIER, read_parts
from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.watch.statistics.cbpe import LabelledWindow, estimate
from mlflow_deploy_plugin.watch.statistics.metrics import ClassPredictions
from projects.environments import NotInstalled, environment

_SETS = {
    "hotels": ("is_canceled", "y_pred", "y_pred_proba"),
    "housing": ("clf_target", "y_pred", "y_pred_proba"),
    "employment": ("employed", "prediction", "predicted_probability"),
    "loans": ("repaid", "y_pred", "y_pred_proba"),
}
"""The columns of the label, the predicted class, and the probability of class 1."""
_METRICS = {"accuracy": accuracy_score, "f1": f1_score, "roc_auc": roc_auc_score}
_REFERENCE = 24
_NANNYML = ("nannyml==0.13.1", "pandas<3", "statsmodels")
_CBPE = """
import sys
import pandas as pd
from nannyml import CBPE
from nannyml.chunk import SizeBasedChunker
folder, rows, metrics = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
estimator = CBPE(
    metrics=metrics, y_true="truth", y_pred="answer", y_pred_proba="chance",
    problem_type="classification_binary",
    chunker=SizeBasedChunker(rows, incomplete="drop"),
)
estimator.fit(pd.read_csv(f"{folder}/reference.csv"))
result = estimator.estimate(pd.read_csv(f"{folder}/later.csv")).filter(period="analysis")
frame = result.to_df()
parts = {"value": "value", "low": "lower_confidence_boundary", "high": "upper_confidence_boundary"}
pd.DataFrame(
    {f"{part} {name}": frame[(name, column)] for name in metrics for part, column in parts.items()}
).to_csv(f"{folder}/estimates.csv", index=False)
"""
Estimates = Mapping[str, Array]
"""By metric, [windows, 3] float64: the estimate and its interval; NaN if unknown."""


def read_answers(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the reference and the later rows of a set, in time, with the columns
    `truth`, `answer` and `chance`.
    """
    truth, answer, chance = _SETS[name]
    names = {truth: "truth", answer: "answer", chance: "chance"}
    parts = read_parts(name, truth)
    tables = [table.rename(columns=names)[[*names.values()]] for table in parts]
    return tables[0], tables[1]


def cut_windows(table: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    """Return the whole windows of `rows` rows."""
    return [table[start : start + rows] for start in range(0, len(table) - rows + 1, rows)]


def realised(windows: Sequence[pd.DataFrame]) -> Mapping[str, Array]:
    """Return each metric of the windows, [windows]."""
    values: dict[str, Array] = {}
    for name, metric in _METRICS.items():
        answers = "chance" if name == "roc_auc" else "answer"
        values[name] = np.array([metric(each["truth"], each[answers]) for each in windows])
    return values


def our_estimates(
    reference: Sequence[pd.DataFrame], later: Sequence[pd.DataFrame], is_labelled_later: bool
) -> Estimates:
    """Return the product's estimates with 95 % intervals, from the last windows of the
    reference, or from the windows before each window.
    """
    labelled = [
        LabelledWindow(each["truth"].to_numpy(np.int64), _answers(each))
        for each in (*reference, *later)
    ]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in _METRICS}
    for number in range(len(reference), len(labelled)):
        until = number if is_labelled_later else len(reference)
        earlier = labelled[until - EARLIER : until]
        of_window = estimate(labelled[number].answers, earlier, tuple(_METRICS))
        assert not isinstance(of_window, Refused)
        for name in _METRICS:
            interval = of_window.measure(name, len(labelled[number].truth), 0.95)
            assert not isinstance(interval, Refused)
            found[name].append((interval.value, interval.low, interval.high))
    return {name: np.array(values) for name, values in found.items()}


def _answers(table: pd.DataFrame) -> ClassPredictions:
    chance = table["chance"].to_numpy(np.float64)
    predicted = table["answer"].to_numpy(np.int64)
    return ClassPredictions(predicted, np.stack([1 - chance, chance], axis=1), ("0", "1"))


def nannyml_estimates(reference: pd.DataFrame, later: pd.DataFrame, rows: int) -> Estimates:
    """Return NannyML's estimates with their intervals of three standard errors."""
    python = environment(_NANNYML, installs=True) / "python"
    with tempfile.TemporaryDirectory(prefix="onnxserve-benchmark-") as folder:
        reference.to_csv(Path(folder, "reference.csv"), index=False)
        later.to_csv(Path(folder, "later.csv"), index=False)
        command = [str(python), "-c", _CBPE, folder, str(rows), *_METRICS]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found = pd.read_csv(Path(folder, "estimates.csv"))
    return {
        name: found[[f"{part} {name}" for part in ("value", "low", "high")]].to_numpy()
        for name in _METRICS
    }


def estimate_lines(share: float = 1.0) -> Iterator[str]:
    """Yield the table of a share of the sets."""
    missing = []
    is_first = True
    for name in [*_SETS][: math.ceil(share * len(_SETS))]:
        try:
            reference, later = read_answers(name)
        except NotHad as error:
            missing.append(f"{name}: {error}")
            continue
        rows = len(reference) // _REFERENCE
        reference = reference[: _REFERENCE * rows]
        judged = cut_windows(later, rows)
        truth = realised(judged)
        try:
            estimators = _estimators(reference, judged, rows)
        except NotInstalled as error:
            missing.append(f"{name}: {error}")
            continue
        if is_first:
            is_first = False
            yield f"| windows × rows: metric (mean; deviation) | {' | '.join(estimators)} |"
            yield "|---" * (1 + len(estimators)) + "|"
        for metric, values in truth.items():
            facts = f"{metric} ({np.nanmean(values):.3f}; {np.nanstd(values):.3f})"
            cells = [score(estimates[metric], values) for estimates in estimators.values()]
            yield f"| {name}, {len(judged)} × {rows}: {facts} | {' | '.join(cells)} |"
    yield "\nMean absolute error; bias; share of intervals that hold the value, and their width."
    for line in missing:
        yield f"Left out: {line}"


def _estimators(
    reference: pd.DataFrame, judged: Sequence[pd.DataFrame], rows: int
) -> Mapping[str, Estimates]:
    known = cut_windows(reference, rows)
    before, truth = realised(known), realised(judged)
    constant = {}
    last = {}
    for metric, values in truth.items():
        constant[metric] = np.full((len(judged), 3), np.nan)
        constant[metric][:, 0] = np.nanmean(before[metric])
        last[metric] = np.full((len(judged), 3), np.nan)
        last[metric][:, 0] = np.append(before[metric][-1], values[:-1])
    return {
        "onnxserve": our_estimates(known, judged, is_labelled_later=False),
        "NannyML CBPE": nannyml_estimates(reference, pd.concat(judged), rows),
        "mean of the reference": constant,
        "onnxserve, labels of the 8 windows before": our_estimates(known, judged, True),
        "value of the window before": last,
    }


def score(estimates: Array, truth: Array) -> str:
    """Return the cell of estimates, [windows, 3], of true values, [windows], which are
    NaN if undefined.
    """
    is_known = np.isfinite(truth) & np.isfinite(estimates[:, 0])
    value, low, high = estimates[is_known].T
    truth = truth[is_known]
    shown = f"{np.abs(value - truth).mean():.4f}; {(value - truth).mean():+.4f}"
    if np.isnan(low).all():
        return shown
    held = ((low <= truth) & (truth <= high)).mean()
    return f"{shown}; {held:.0%} of {(high - low).mean():.3f}"
