"""Evidently's part of a report: the distributions of judged columns in the reference
and the window.

Evidently does not judge drift: by Evidently's own rules, nothing drifted in a whole
year of real flights, and everything drifted on thirty rows. Evidently therefore only
describes the columns, without tests and thresholds. Columns are converted to float64 or
text, because Evidently 0.7.23 fails on columns of any other type. If Evidently still
fails, the report contains the reason.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.result import MonitorResult

_CATEGORIES = 50
_LONGEST_VALUE = 80
_MIN_ROWS = 3  # Evidently fails on one or two rows of text.
_LARGEST = 1e100
_MISSING = "(missing)"
_OTHER = "(other)"
_DATA = re.compile(r"^( *var (?:additional_graphs_)?metric_[0-9a-f]+ = )([\[{].*?)$", re.MULTILINE)
_GREY = "#4d4d4d"
_BLUE = "#3b82c4"
"""Evidently's colour of the reference, and a colour with a contrast of at least 3 on
white and on the dark page.
"""

ColumnPair = tuple[ColumnValues, ColumnValues]
"""The values of a column in the reference, [N], and in the window, [M]; equal N and
equal M for all columns.
"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvidentlyReport:
    """The charts and figures from Evidently, with notes."""

    page: str = ""
    figures: str = ""
    notes: tuple[str, ...] = ()


def draw_columns(result: MonitorResult, pairs: Sequence[ColumnPair], most: int) -> EvidentlyReport:
    """Draw the first `most` judged columns of the findings. If nothing is drawn, a note
    has the reason.
    """
    # If names are equal, use the first pair.
    by_name = {pair[0].name: pair for pair in reversed(pairs)}
    judged = {
        finding.subject: by_name[finding.subject]
        for finding in result.findings
        if finding.state != "not judged" and not finding.segment and finding.subject in by_name
    }
    if not judged:
        return EvidentlyReport(notes=("no column has a score and rows to draw",))
    if min(len(side.values) for side in next(iter(judged.values()))) < _MIN_ROWS:
        return EvidentlyReport(notes=(f"charts need at least {_MIN_ROWS} rows",))
    notes = []
    empty = [
        window.name
        for reference, window in judged.values()
        if pd.isna(reference.values).all() or pd.isna(window.values).all()
    ]
    if empty:
        notes.append(
            "charts omit columns without a value in the window or in the reference: "
            f"{join_names(empty)}",
        )
    filled = [pair for pair in judged.values() if pair[0].name not in empty]
    columns = filled[:most]
    if not columns:
        return EvidentlyReport(notes=tuple(notes))
    if len(columns) < len(filled):
        notes.append(f"charts show only the first {len(columns)} of {len(filled)} columns")
    try:
        return replace(_run_evidently(columns), notes=tuple(notes))
    except Exception as error:  # noqa: BLE001 - a failure of Evidently must not prevent the report.
        _log.warning("Evidently failed on %s", result.window, exc_info=True)
        reason = f"{type(error).__name__}: {one_line(str(error))}"[:200]
        return EvidentlyReport(notes=(*notes, f"Evidently failed: {reason}"))


def _run_evidently(columns: Sequence[ColumnPair]) -> EvidentlyReport:
    """Return Evidently's page, in HTML, and its figures, in JSON."""
    # The import takes five seconds and 150 MB.
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import ValueStats

    references: dict[str, Array] = {}
    windows: dict[str, Array] = {}
    text = set()
    for reference, window in columns:
        name = reference.name
        left = reference.values
        right = window.values
        has_histograms = False
        if reference.kind == window.kind == "number":
            left = np.where(np.isfinite(left), left, np.nan)
            right = np.where(np.isfinite(right), right, np.nan)
            has_histograms = _has_histogram(left) and _has_histogram(right)
        if not has_histograms:  # The column becomes text.
            text.add(name)
            left, right = _categories(left, right)
        references[name] = left
        windows[name] = right
    definition = DataDefinition(
        numerical_columns=[name for name in references if name not in text],
        categorical_columns=sorted(text),
    )
    snapshot = Report([ValueStats(column=name) for name in references]).run(
        Dataset.from_pandas(pd.DataFrame(windows), data_definition=definition),
        Dataset.from_pandas(pd.DataFrame(references), data_definition=definition),
    )
    # Evidently writes its data as plain JSON. Escape "<", so that no name or value can
    # end the script.
    page = _DATA.sub(
        lambda line: line[1] + line[2].replace("<", "\\u003c").replace(_GREY, _BLUE),
        snapshot.get_html_str(as_iframe=False),
    )
    return EvidentlyReport(page, snapshot.json())


def _has_histogram(values: Array) -> bool:
    """Return True if numpy can bin the values: some are known, and float64 resolves
    their range.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        return False
    largest = float(np.abs(present).max())
    # numpy widens a constant by 0.5 on both sides.
    width = float(present.max() - present.min()) or 1.0
    return largest < _LARGEST and width > 100 * float(np.spacing(largest))


def _categories(reference: Array, window: Array) -> Iterator[Array]:
    """Yield reference and window as texts: frequent reference values, `_OTHER` for
    other values, or `_MISSING`.
    """

    def text(value: object) -> str:
        if value is None or value != value:  # Only NaN differs from itself.
            return _MISSING
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        return shown[:_LONGEST_VALUE]

    sides = [list(map(text, values.tolist())) for values in (reference, window)]
    shown = {value: value for value, _ in Counter(sides[0]).most_common(_CATEGORIES)}
    shown[_MISSING] = _MISSING
    for side in sides:
        yield np.array(
            [shown.get(value, _OTHER) for value in side],
            dtype=object,
        )
