"""The files of a report: a page that stands alone, every finding as JSON, and what the monitor itself wants kept."""

import json
from collections.abc import Mapping

from mlflow_deploy_plugin.monitoring.reports.evidently_charts import EvidentlyReport, draw_columns
from mlflow_deploy_plugin.monitoring.reports.page import PAGE, render_page
from mlflow_deploy_plugin.monitoring.result import MonitorResult, ReportData, to_document

DOCUMENT, EVIDENTLY = "verdict.json", "evidently.json"
LARGEST_PAGE = 6_000_000
"""Bytes; MLflow's viewer takes a page as one text into a frame, and becomes slow beyond."""
_MOST_COLUMNS = 30  # drawn in some ten seconds


def build_report(result: MonitorResult, evidence: ReportData) -> Mapping[str, str | bytes]:
    """The files of the run by name: text, or bytes as they are to be stored.

    Evidently draws where there are rows to draw; where it cannot, the page says why and has everything else.
    """
    columns, drawn = _MOST_COLUMNS, EvidentlyReport()
    while evidence.pairs and result.state != "not judged":
        drawn = draw_columns(result, evidence.pairs, columns)
        if len(drawn.page) <= LARGEST_PAGE * 0.9 or columns <= 1:
            break
        columns //= 2
    files: dict[str, str | bytes] = dict(evidence.artifacts)
    files[PAGE] = render_page(result, drawn)
    files[DOCUMENT] = json.dumps(to_document(result), indent=1, allow_nan=False)
    if drawn.figures:
        files[EVIDENTLY] = drawn.figures
    return files
