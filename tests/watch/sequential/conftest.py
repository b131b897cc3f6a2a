"""Days of rows with levels of their own, their reference,
and requests to judge them.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import Window, microseconds
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from mlflow_deploy_plugin.watch.kinds.drift import WindowComparison
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, JudgedWindow, LevelSeries
from mlflow_deploy_plugin.watch.sequential.levels import window_levels

REFERENCE_DAYS = 60
ROWS = 80
FIRST = datetime(2013, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000


def rows_of(day):
    """Return the rows of a day: the levels of days have standard deviations of 0.5 and
    0.05.
    """
    rng = np.random.default_rng(day)
    share = 0.5 + rng.normal(0, 0.05)
    return {
        "temp": rng.normal(rng.normal(10, 0.5), 1, ROWS),
        "delay": np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(rng.normal(0, 0.5), 1, ROWS)),
        "carrier": np.where(rng.random(ROWS) < share, "UA", rng.choice(["AA", "DL"], ROWS)),
    }


def reference_of(days=REFERENCE_DAYS, length_us=DAY_US, change=lambda rows, day: rows):
    """Return the reference of the first `days`."""
    table = pa.concat_tables([pa.table(change(rows_of(day), day)) for day in range(days)])
    times = microseconds(FIRST) + np.arange(days * ROWS) * (DAY_US // ROWS)
    bins, _ = freeze_table(table, (), "the rows")
    pieces = cut_pieces(bins, table, times, int(times[0]), length_us)
    return DriftReference(bins, bins_digest(bins), pieces, table)


@pytest.fixture(scope="session")
def reference():
    return reference_of()


class Judged(NamedTuple):
    """The lasting shifts of a window, the findings about the window alone, and the
    evidence that its result has.
    """

    findings: tuple[Finding, ...]
    alone: tuple[Finding, ...]
    evidence: Evidence
    notes: tuple[str, ...]
    charts: tuple[LevelSeries, ...]


class Stream:
    """Follows one window after another, by default a day; each verdict sees the
    evidence of the windows before.
    """

    def __init__(self, reference, days_per_window=1, **spec):
        self.reference = reference
        self._days_per_window = days_per_window
        self._spec = MonitorSpec(**{"min_rows": 30, **spec})
        self.past = []

    def follow(self, days, change=lambda rows: rows, changed_from=None):
        """Record the evidence of the windows, which begin at the days, without a
        verdict on them. By default, all days are changed.
        """
        for day in days:
            profile = self._profile(day, change, changed_from or days[0])
            columns = self.reference.bins if profile.rows >= self._spec.min_rows else ()
            levels = window_levels(self.reference, profile, columns, "")
            evidence = Evidence(self.reference.bins_key, levels)
            self.past.append(JudgedWindow(self._window(day).start, "no drift", evidence))

    def judge(
        self,
        days,
        change=lambda rows: rows,
        per_year=1.0,
        changed_from=None,
        **context,
    ):
        """Follow the windows, which begin at the days, and return the verdict on the
        last one.
        """
        changed_from = changed_from or days[0]
        self.follow(days[:-1], change, changed_from)
        request = WindowRequest(
            "flights",
            "daily",
            self._spec,
            self._window(days[-1]),
            1,
            load_settings(),
            false_per_year=per_year,
            past=tuple(self.past),
            **context,
        )
        profile = self._profile(days[-1], change, changed_from)
        judged = WindowComparison(request, ("m", "1"), self.reference, "", profile, {}, (), {})
        verdict = judged.verdict(())
        shifts = judged.shifts(verdict)
        evidence = replace(verdict.evidence, shifts=shifts.starts)
        self.past.append(JudgedWindow(request.window.start, "no drift", evidence))
        return Judged(shifts.findings, verdict.findings, evidence, shifts.notes, shifts.charts)

    def _window(self, day):
        start = FIRST + timedelta(days=REFERENCE_DAYS + day)
        return Window(start, start + timedelta(days=self._days_per_window))

    def _profile(self, first_day, change, changed_from):
        days = range(first_day, first_day + self._days_per_window)
        rows = {day: rows_of(REFERENCE_DAYS + day) for day in days}
        changed = [change(rows[day]) if day >= changed_from else rows[day] for day in days]
        return sketch_batches(self.reference.bins, [pa.concat_tables(map(pa.table, changed))])


@pytest.fixture
def stream(reference):
    return Stream(reference)
