"""The scores of other tools for windows, by the tool's own Python and without imports
of this repository: `PYTHON peers.py TOOL FOLDER …`.

A folder has `rows.parquet`: inputs, `prediction`, `probability CLASS`, the label
`truth`, and `window`, the number of the window; and `facts.json`: the number of windows
in the reference, the classes, and sequences of windows. The script writes `TOOL.json`:
by score its values in the windows of each sequence, and `cpu`, the seconds per window.
"""

import importlib
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_SAMPLE = 2_000
"""The rows of the reference that a tool which compares rows gets."""
_SLACK = 0.5
"""The slack of a CUSUM, in standard deviations: it is the fastest for a shift of one
(Page, Biometrika 41, 1954).
"""
_DELTAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-12, 1e-15, 1e-20, 1e-30)
Facts = dict[str, Any]
Scores = dict[str, Any]


def evidently(tests: Any, rows: pd.DataFrame, facts: Facts) -> Scores:
    """Return the share of drifted columns, and the largest distance of a column, by the
    tests that Evidently's preset of drift chooses.
    """
    sample = _sample(rows, facts)
    shares = []
    largest = []
    for _, window in rows.groupby("window"):
        found = []
        for name in _columns(rows):
            kind = "num" if _is_number(rows[name]) else "cat"
            values = sample[name].dropna(), window[name].dropna()
            if all(map(len, values)):  # The tests fail without values.
                found.append(tests.get_stattest(*values, kind, None)(*values, kind, None))
        shares.append(np.mean([each.drifted for each in found]))
        largest.append(max(each.drift_score for each in found))
    return {"share": _in_sequences(shares, facts), "column": _in_sequences(largest, facts)}


def nannyml(package: Any, rows: pd.DataFrame, facts: Facts) -> Scores:
    """Return the largest distance of a column, in standard deviations of the windows of
    the reference, and the fall of the accuracy that CBPE estimates.
    """
    names = np.array(facts["classes"])
    chances: Any = {name: f"probability {name}" for name in facts["classes"]}
    if len(names) == 2:
        chances = chances[names[1]]
    else:
        rows = rows.assign(prediction=names[rows["prediction"]], truth=names[rows["truth"]])
    columns = _columns(rows)
    rows = rows.assign(time=pd.Timestamp(0) + pd.to_timedelta(rows["window"], "D"))
    reference = rows[rows["window"] < facts["reference"]]
    chunks = {"timestamp_column_name": "time", "chunk_period": "D"}
    drift = package.UnivariateDriftCalculator(columns, **chunks).fit(reference)
    table = drift.calculate(rows).filter(period="analysis").to_df()
    distances = np.stack([table[name, "jensen_shannon", "value"] for name in columns], axis=1)
    cbpe = package.CBPE(
        y_pred_proba=chances,
        y_pred="prediction",
        y_true="truth",
        metrics=["accuracy"],
        problem_type=f"classification_{'binary' if len(names) == 2 else 'multiclass'}",
        **chunks,
    ).fit(reference)
    accuracy = cbpe.estimate(rows).filter(period="analysis").to_df()["accuracy", "value"]
    scores = _standardised(distances, facts).max(axis=1)
    return {"drift": _in_sequences(scores, facts), "cbpe": _in_sequences(-accuracy, facts)}


def alibi(tests: Any, rows: pd.DataFrame, facts: Facts) -> Scores:
    """Return the negative logarithm of the smallest p-value of a column:
    Kolmogorov–Smirnov for numbers, chi-square for categories.
    """
    positions = _sample(rows, facts).index
    values = rows[_columns(rows)].copy()
    kinds = {}
    for number, name in enumerate(_columns(rows)):
        if not _is_number(rows[name]):
            # The test fails on texts that the sample lacks, so they are its rarest.
            column = rows[name].astype(str)
            texts = column[positions].value_counts().index
            codes = pd.Categorical(column, texts).codes
            values[name] = codes % len(texts)
            kinds[number] = [*range(len(texts))]
    numbers = values.fillna(-1e9).to_numpy(np.float64)
    sample = numbers[positions]
    detector = tests.TabularDrift(sample, categories_per_feature=kinds)
    scores = []
    for window in rows.groupby("window").indices.values():
        p_values = detector.feature_score(sample, numbers[window])[0]
        scores.append(-math.log10(max(np.nanmin(p_values), 1e-300)))
    return {"tests": _in_sequences(scores, facts)}


def river(drift: Any, rows: pd.DataFrame, facts: Facts) -> Scores:
    """Return the strictest level at which ADWIN finds a change of a daily figure, and
    of the errors of the rows: 0 if none does.
    """
    wrong = (rows["truth"] != rows["prediction"]).to_numpy(np.float64)
    errors = [wrong[positions, None] for positions in rows.groupby("window").indices.values()]
    figures = [each[None] for each in daily_figures(rows, facts)]
    return {"figures": _levels(drift, figures, facts, 1), "errors": _levels(drift, errors, facts)}


def _levels(
    drift: Any, windows: list[np.ndarray], facts: Facts, clock: int = 32
) -> list[list[int]]:
    """Return the levels of each sequence; the rows of each window are [n, series]."""
    found = []
    for sequence in facts["sequences"]:
        levels = np.zeros(facts["reference"] + len(sequence), np.int64)
        for level, delta in enumerate(_DELTAS, 1):
            detectors = [drift.ADWIN(delta=delta, clock=clock) for _ in windows[0][0]]
            for at, window in enumerate([*range(facts["reference"]), *sequence]):
                for detector, values in zip(detectors, windows[window].T.tolist(), strict=True):
                    for value in values:
                        detector.update(value)
                        if detector.drift_detected:
                            levels[at] = level
        found.append(levels[facts["reference"] :].tolist())
    return found


def cusum(_: Any, rows: pd.DataFrame, facts: Facts) -> Scores:
    """Return the largest two-sided sum of a daily figure, and the sum of the error."""
    wrong = (rows["truth"] != rows["prediction"]).groupby(rows["window"]).mean()
    errors = _standardised(wrong.to_numpy()[:, None], facts)
    figures = daily_figures(rows, facts)
    both = np.hstack([figures, -figures])
    sequences = facts["sequences"]
    return {
        "figures": [cumulative_sums(both[each]) for each in sequences],
        "errors": [cumulative_sums(errors[each]) for each in sequences],
    }


def cumulative_sums(values: np.ndarray) -> list[float]:
    """Return the largest sum at each of the `values`, [n, series]."""
    sums = np.zeros(values.shape[1])
    largest = []
    for value in values:
        sums = np.maximum(sums + value - _SLACK, 0)
        largest.append(float(sums.max()))
    return largest


def daily_figures(rows: pd.DataFrame, facts: Facts) -> np.ndarray:
    """Return the mean, the logarithm of the deviation and the missing share of each
    column, or the shares of its three most frequent texts, and the logarithm of the
    number of rows; standardised by the reference, [windows, figures].
    """
    number = rows["window"]
    figures: list[Any] = [np.log(number.groupby(number).size())]
    for name in _columns(rows):
        column = rows[name]
        figures.append(column.isna().groupby(number).mean())
        if _is_number(column):
            figures.append(column.groupby(number).mean())
            figures.append(np.log(column.groupby(number).std() + 1e-9))
        else:
            for text in column[number < facts["reference"]].value_counts().index[:3]:
                figures.append((column == text).groupby(number).mean())
    return _standardised(np.nan_to_num(np.stack(figures, axis=1)), facts)


def _standardised(figures: np.ndarray, facts: Facts) -> np.ndarray:
    usual = figures[: facts["reference"]]
    standardised: np.ndarray = (figures - usual.mean(axis=0)) / np.maximum(usual.std(axis=0), 1e-6)
    return standardised


def _in_sequences(scores: Any, facts: Facts) -> list[list[float]]:
    return [np.asarray(scores, np.float64)[each].tolist() for each in facts["sequences"]]


def _columns(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows.columns.drop(["window", "truth"])]


def _is_number(column: "pd.Series[Any]") -> bool:
    return column.dtype.kind in "fi"


def _sample(rows: pd.DataFrame, facts: Facts) -> pd.DataFrame:
    reference = rows[rows["window"] < facts["reference"]]
    return reference.sample(min(_SAMPLE, len(reference)), random_state=0)


_TOOLS = {
    "alibi": (alibi, "alibi_detect.cd"),
    "cusum": (cusum, "numpy"),
    "evidently": (evidently, "evidently.legacy.calculations.stattests"),
    "nannyml": (nannyml, "nannyml"),
    "river": (river, "river.drift"),
}


def main() -> None:
    warnings.simplefilter("ignore")
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # NannyML sends its usage to a server.
    judge, package = _TOOLS[sys.argv[1]]
    module = importlib.import_module(package)
    for folder in map(Path, sys.argv[2:]):
        rows = pd.read_parquet(folder / "rows.parquet")
        facts = json.loads((folder / "facts.json").read_text())
        begun = time.process_time()
        scores = judge(module, rows, facts)
        scores["cpu"] = (time.process_time() - begun) / (rows["window"].max() + 1)
        (folder / f"{sys.argv[1]}.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
