"""The Evidently report of a verdict: the same features, the same statistic, the same threshold, so that they agree.

Evidently draws and tabulates; it decides nothing. Its own rules call nothing drifted on real flights over a whole year,
and everything on thirty rows. Our score of each feature is registered with it as a drift method, and it calls the
data set drifted when one feature is.

Evidently 0.7.23 fails as a whole on a single column that it cannot take, so every column is made one that it can:
float64 or text, numbers without a value or without a histogram as text, no more than some fifty categories, no
infinities, no more features than it draws in seconds.
"""

import html
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import StatTest, register_stattest
from evidently.legacy.core import ColumnType
from evidently.metrics import MissingValueCount
from evidently.presets import DataDriftPreset

from mlflow_deploy_plugin.monitoring.features import Array, Feature
from mlflow_deploy_plugin.monitoring.verdict import Verdict

MAX_ROWS = 5_000
MAX_FEATURES = 30
_CATEGORIES = 50
_MIN_ROWS = 3  # with one or two rows of text Evidently raises
_LARGEST = 1e100
_METHOD = "onnxserve"
_MISSING, _OTHER = "(missing)", "(other)"

_scores: ContextVar[Mapping[str, tuple[float, bool]]] = ContextVar("scores")


@dataclass(frozen=True)
class DriftReport:
    """A report as two files: a page that stands alone, and Evidently's figures."""

    html: str
    json: str


def build_report(
    verdict: Verdict, pairs: Sequence[tuple[Feature, Feature]], title: str, notes: Sequence[str], seed: int = 0
) -> DriftReport:
    """The report of a window.

    Args:
        verdict: a judged one is drawn by Evidently; of one that is not, the page says why.
        pairs: as they were judged.
        notes: what the reader has to know beside it, a line each.
        seed: chooses the rows that are drawn.
    """
    if verdict.state == "not judged" or verdict.rows < _MIN_ROWS or verdict.reference_rows < _MIN_ROWS:
        head = _head(verdict, title, notes)
        page = _with_head("<!doctype html><html><head><meta charset='utf-8'></head><body></body></html>", head)
        return DriftReport(page, json.dumps({"metrics": [], "tests": [], "reason": verdict.reason}))
    notes = list(notes)
    shown = [feature.name for feature in verdict.features[:MAX_FEATURES]]
    if len(verdict.features) > len(shown):
        notes.append(f"drawn are the {len(shown)} features with the highest scores, of {len(verdict.features)}")
    if max(verdict.rows, verdict.reference_rows) > MAX_ROWS:
        notes.append(f"drawn are at most {MAX_ROWS:,} rows of each side; the scores are those of all rows")
    by_name = {left.name: (left, right) for left, right in pairs}
    chosen = [by_name[name] for name in shown]
    with _registered(verdict), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns have no correlations
        snapshot = _run(chosen, verdict, seed)
        page, figures = snapshot.get_html_str(as_iframe=False), snapshot.json()
    return DriftReport(_with_head(page, _head(verdict, title, notes)), figures)


def _run(pairs: list[tuple[Feature, Feature]], verdict: Verdict, seed: int) -> Any:
    reference, current, text = _frames(pairs, np.random.default_rng(seed))
    definition = DataDefinition(
        numerical_columns=[name for name in reference.columns if name not in text], categorical_columns=sorted(text)
    )
    incomplete = [name for name in reference.columns if reference[name].isna().any() or current[name].isna().any()]
    report = Report(
        [
            # one drifted feature is more than this share: the data set is called what the verdict says
            DataDriftPreset(method=_METHOD, threshold=verdict.threshold, drift_share=0.5 / len(pairs)),
            *(MissingValueCount(column=name, tests=[]) for name in incomplete),
        ],
        include_tests=True,
    )
    return report.run(
        Dataset.from_pandas(current, data_definition=definition),
        Dataset.from_pandas(reference, data_definition=definition),
    )


def _frames(
    pairs: list[tuple[Feature, Feature]], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, set[str]]:
    """Reference and current as Evidently can take them, and the names of the columns of text."""
    rows = [
        np.sort(rng.choice(count, MAX_ROWS, replace=False)) if count > MAX_ROWS else np.arange(count)
        for count in (len(pairs[0][0].values), len(pairs[0][1].values))
    ]
    columns: list[dict[str, Array]] = [{}, {}]
    text = set()
    for pair in pairs:
        left, right = (feature.values[chosen] for feature, chosen in zip(pair, rows, strict=True))
        name = pair[0].name
        if pair[0].kind == "category":
            text.add(name)
            columns[0][name], columns[1][name] = _categories(left, right)
            continue
        left, right = (np.where(np.isfinite(values), values, np.nan) for values in (left, right))
        if not (_has_histogram(left) and _has_histogram(right)):
            text.add(name)
            left, right = _categories(_as_text(left), _as_text(right))
        columns[0][name], columns[1][name] = left, right
    return pd.DataFrame(columns[0]), pd.DataFrame(columns[1]), text


def _has_histogram(values: Array) -> bool:
    """Whether numpy can bin the values: some are known, and they are no larger than float64 can tell apart."""
    known = values[~np.isnan(values)]
    if not len(known):
        return False
    largest = float(np.abs(known).max())
    width = float(known.max() - known.min()) or 1.0  # numpy widens a constant by a half to both sides
    return largest < _LARGEST and width > 100 * float(np.spacing(largest))


def _as_text(values: Array) -> Array:
    return np.array([None if np.isnan(value) else f"{value:.6g}" for value in values], dtype=object)


def _categories(left: Array, right: Array) -> tuple[Array, Array]:
    """Text with no more than the reference's most frequent values; the missing ones are a value."""
    frequent = {value for value, _ in Counter(left).most_common(_CATEGORIES)} | {None}

    def reduced(values: Array) -> Array:
        kept = [_MISSING if value is None else value if value in frequent else _OTHER for value in values]
        return np.array(kept, dtype=object)

    return reduced(left), reduced(right)


def _precomputed(reference: pd.Series, current: pd.Series, kind: Any, threshold: float) -> tuple[float, bool]:
    """The drift method that Evidently calls for each column: it looks the verdict's score up."""
    return _scores.get()[str(current.name)]


register_stattest(
    StatTest(
        name=_METHOD,
        display_name="standard deviations (onnxserve)",
        allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
    ),
    _precomputed,
)


@contextmanager
def _registered(verdict: Verdict) -> Iterator[None]:
    token = _scores.set({feature.name: (feature.score, feature.is_drifted) for feature in verdict.features})
    try:
        yield
    finally:
        _scores.reset(token)


def _with_head(page: str, head: str) -> str:
    """Evidently's page with our paragraph as the first thing of its body."""
    start = page.find("<body")
    end = page.find(">", start) + 1
    return page[:end] + head + page[end:]


def _head(verdict: Verdict, title: str, notes: Sequence[str]) -> str:
    lines = [
        f"<h1 style='font-size:1.4em'>{html.escape(title)}: {verdict.state}</h1><p>{html.escape(summary(verdict))}</p>"
    ]
    if verdict.features:
        names = ("feature", "score", "distance", "missing", "missing in the reference", "")
        cells = "".join(f"<th style='text-align:left;padding-right:1.5em'>{name}</th>" for name in names)
        rows = [
            f"<tr><td>{html.escape(feature.name)}</td><td>{feature.score:.2f}</td><td>{feature.distance:.3f}</td>"
            f"<td>{feature.missing:.1%}</td><td>{feature.reference_missing:.1%}</td>"
            f"<td>{'drifted' if feature.is_drifted else ''}</td></tr>"
            for feature in verdict.features[:MAX_FEATURES]
        ]
        lines.append(f"<table><tr>{cells}</tr>{''.join(rows)}</table>")
    lines += [f"<p>Note: {html.escape(note)}.</p>" for note in notes]
    return f"<div style='font-family:sans-serif;margin:1.5em'>{''.join(lines)}</div>"


def summary(verdict: Verdict) -> str:
    """The verdict in a sentence or two."""
    if verdict.threshold is None:
        return f"Not judged: {verdict.reason}."
    measured = (
        f", measured on the reference's own windows {verdict.measured_false_alarm_rate:.1%}"
        if verdict.measured_false_alarm_rate is not None
        else ""
    )
    return (
        f"{verdict.rows:,} rows, compared with {verdict.blocks} windows of the same length of the reference at "
        f"{verdict.compared_rows:,} rows each. The largest score is {verdict.statistic:.2f} standard deviations, the "
        f"threshold {verdict.threshold:.2f}; p = {verdict.p_value:.3f}. "
        f"Share of false alarms: stated {verdict.false_alarm_rate:.1%}{measured}."
    )
