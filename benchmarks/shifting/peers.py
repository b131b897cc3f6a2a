"""The scores of other tools for windows, by the tool's own Python and without imports
of this repository.

    PYTHON peers.py TOOL FOLDER

The folder has `rows.parquet`: inputs, `prediction`, `probability CLASS`, the class of
the label `truth`, and `window`, the number of the window; and `facts.json`: the number
of windows in the reference, the classes, and sequences of windows. The script writes
`TOOL.json`: `scores` of the windows of each sequence, or by strictness `flags` of them,
and `cpu`, the seconds per window.

A tool is calibrated later: its scores have no threshold, or it is run with many.
"""

import importlib
import json
import math
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

_SAMPLE = 5_000
"""The rows of the reference that a tool which compares rows gets."""
_SLACK = 0.5
"""The slack of a CUSUM, in standard deviations: it is the fastest for a shift of one
(Page, Biometrika 41, 1954).
"""
_DELTAS = 10.0 ** -np.array([30, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1])


def evidently(rows, facts):
    """Return the share of drifted columns, and the largest distance of a column: both
    by Evidently's tests, which its preset of drift chooses. The preset takes about a
    second per window, so it judges three windows, for its CPU time.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.presets import DataDriftPreset

    inputs = rows.drop(columns=["window", "truth"])
    kinds = {name: "num" if inputs[name].dtype.kind in "fi" else "cat" for name in inputs}
    sample = _sample(rows, facts)[inputs.columns]
    shares = []
    largest = []
    for _, window in inputs.groupby(rows["window"]):
        scores = []
        for name, kind in kinds.items():
            columns = sample[name].dropna(), window[name].dropna()
            test = get_stattest(*columns, kind, None)
            scores.append(test(*columns, kind, None))
        shares.append(float(np.mean([score.drifted for score in scores])))
        largest.append(float(max(score.drift_score for score in scores)))
    definition = DataDefinition(
        numerical_columns=[name for name, kind in kinds.items() if kind == "num"],
        categorical_columns=[name for name, kind in kinds.items() if kind == "cat"],
    )
    reference = Dataset.from_pandas(sample, definition)
    begun = time.process_time()
    for window in range(3):
        current = Dataset.from_pandas(inputs[rows["window"] == window], definition)
        found = Report([DataDriftPreset()]).run(current, reference).dict()["metrics"]
        by_preset = found[0]["value"]["share"], max(each["value"] for each in found[1:])
        if not np.allclose(by_preset, (shares[window], largest[window])):
            raise ValueError(f"window {window}: {by_preset} by the preset")
    seconds = (time.process_time() - begun) / 3
    return {"share": shares, "column": largest, "cpu": seconds}


def nannyml(rows, facts):
    """Return the largest distance of a column, in standard deviations of the chunks of
    the reference, and the fall of the accuracy that CBPE estimates.
    """
    import nannyml

    rows = rows.assign(time=pd.Timestamp(0) + pd.to_timedelta(rows["window"], "D"))
    is_reference = rows["window"] < facts["reference"]
    chunks = {"timestamp_column_name": "time", "chunk_period": "D"}
    columns = [name for name in rows if name not in ("window", "truth", "time")]
    drift = nannyml.UnivariateDriftCalculator(columns, **chunks).fit(rows[is_reference])
    table = drift.calculate(rows).filter(period="analysis").to_df()
    distances = np.stack([table[name, "jensen_shannon", "value"] for name in columns], axis=1)
    usual = distances[: facts["reference"]]
    scores = (distances - usual.mean(axis=0)) / (usual.std(axis=0) + 1e-9)
    chances = {name: f"probability {name}" for name in facts["classes"]}
    kind = "classification_multiclass"
    if len(chances) == 2:
        chances = f"probability {facts['classes'][1]}"
        kind = "classification_binary"
    else:
        names = np.array(facts["classes"])
        rows = rows.assign(prediction=names[rows["prediction"]], truth=names[rows["truth"]])
    cbpe = nannyml.CBPE(
        y_pred_proba=chances,
        y_pred="prediction",
        y_true="truth",
        metrics=["accuracy"],
        problem_type=kind,
        **chunks,
    ).fit(rows[is_reference])
    estimated = cbpe.estimate(rows).filter(period="analysis").to_df()["accuracy", "value"]
    return {"drift": scores.max(axis=1).tolist(), "cbpe": (-estimated).tolist()}


def alibi(rows, facts):
    """Return the negative logarithm of the smallest p-value of a column:
    Kolmogorov–Smirnov for numbers, chi-square for categories.
    """
    from alibi_detect.cd import TabularDrift

    inputs = rows.drop(columns=["window", "truth"])
    for name in inputs:
        if inputs[name].dtype.kind not in "fi":
            inputs[name] = pd.factorize(inputs[name])[0]
    texts = [at for at, name in enumerate(inputs) if rows[name].dtype.kind not in "fi"]
    values = inputs.to_numpy(np.float64)
    values = np.where(np.isnan(values), -1e9, values)
    sample = values[_sample(rows, facts).index]
    # All categories, because a chi-square test fails on those of the window only.
    kinds = {at: np.unique(values[:, at]).tolist() for at in texts}
    detector = TabularDrift(sample, p_val=0.05, categories_per_feature=kinds)
    scores = []
    for _, positions in rows.groupby("window").indices.items():
        p_values = detector.feature_score(sample, values[positions])[0]
        scores.append(-math.log10(max(float(np.nanmin(p_values)), 1e-300)))
    return {"tests": scores}


def river(rows, facts):
    """Return the windows in which ADWIN detects a change of any daily figure, and of
    the errors of the rows, by its confidence.
    """
    figures = daily_figures(rows, facts["reference"])
    wrong = (rows["truth"] != rows["prediction"]).to_numpy(np.float64)
    parts = [wrong[positions, None] for positions in rows.groupby("window").indices.values()]
    daily = [each[None] for each in figures]
    return {"figures": _adwin(daily, facts, 1), "errors": _adwin(parts, facts, 32)}


def cusum(rows, facts):
    """Return the largest two-sided sum of a daily figure, and that of the error."""
    figures = daily_figures(rows, facts["reference"])
    wrong = (rows["truth"] != rows["prediction"]).groupby(rows["window"]).mean().to_numpy()
    errors = _standardised(wrong[:, None], facts["reference"])
    sequences = facts["sequences"]
    return {
        "figures": [_sums(np.abs, figures[each]) for each in sequences],
        "errors": [_sums(lambda values: values, errors[each]) for each in sequences],
    }


def daily_figures(rows, reference):
    """Return the mean, the logarithm of the standard deviation and the missing share of
    each column of numbers, the shares of the three most frequent other values, and the
    logarithm of the number of rows; standardised by the reference, [W, F].
    """
    groups = rows["window"]
    figures = [np.log(np.bincount(groups))]
    for name in rows.columns.drop(["window", "truth"]):
        column = rows[name]
        figures.append(column.isna().groupby(groups).mean())
        if column.dtype.kind in "fi":
            of_windows = column.groupby(groups)
            figures.append(of_windows.mean())
            figures.append(np.log(of_windows.std(ddof=0) + 1e-9))
            continue
        for value in column[groups < reference].value_counts().index[:3]:
            figures.append((column == value).groupby(groups).mean())
    stacked = np.stack([np.nan_to_num(np.asarray(each, float)) for each in figures], axis=1)
    return _standardised(stacked, reference)


def _standardised(figures, reference):
    usual = figures[:reference]
    deviations = np.maximum(usual.std(axis=0), 1e-6)
    return (figures - usual.mean(axis=0)) / deviations


def _sums(side, values):
    """Return the largest sum of each window, [n]; both sides with `abs`, which makes
    two sums of one.
    """
    both = np.hstack([values, -values]) if side is np.abs else values
    sums = np.zeros(both.shape[1])
    largest = []
    for value in both:
        sums = np.maximum(sums + value - _SLACK, 0)
        largest.append(float(sums.max()))
    return largest


def _adwin(parts, facts, clock):
    """Return by delta, sequence and window whether a detector of any series fires, the
    strictest delta first. `parts` are the values of each window, [n, series].
    """
    from river.drift import ADWIN

    flags = []
    for delta in _DELTAS.tolist():
        of_delta = []
        for sequence in facts["sequences"]:
            detectors = [ADWIN(delta=delta, clock=clock) for _ in parts[0][0]]
            found = []
            for window in [*range(facts["reference"]), *sequence]:
                is_found = False
                for values in parts[window].tolist():
                    for detector, value in zip(detectors, values, strict=True):
                        detector.update(value)
                        is_found = is_found or detector.drift_detected
                found.append(is_found)
            of_delta.append(found[facts["reference"] :])
        flags.append(of_delta)
    return flags


def _sample(rows, facts):
    reference = rows[rows["window"] < facts["reference"]]
    return reference.sample(min(_SAMPLE, len(reference)), random_state=0)


def main():
    warnings.simplefilter("ignore")
    tool = sys.argv[1]
    folder = Path(sys.argv[2])
    rows = pd.read_parquet(folder / "rows.parquet")
    facts = json.loads((folder / "facts.json").read_text())
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # NannyML sends usage to a server.
    importlib.import_module(_PACKAGES.get(tool, "numpy"))
    begun = time.process_time()
    found = _TOOLS[tool](rows, facts)
    seconds = (time.process_time() - begun) / (rows["window"].max() + 1)
    (folder / f"{tool}.json").write_text(json.dumps({"cpu": seconds, **found}))


_TOOLS = {
    "alibi": alibi,
    "cusum": cusum,
    "evidently": evidently,
    "nannyml": nannyml,
    "river": river,
}
_PACKAGES = {
    "alibi": "alibi_detect.cd",
    "evidently": "evidently.presets",
    "nannyml": "nannyml",
    "river": "river.drift",
}


if __name__ == "__main__":
    main()
