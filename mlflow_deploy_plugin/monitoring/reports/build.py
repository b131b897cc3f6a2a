"""The files of a report: a page that stands alone, every finding as JSON, and what the monitor itself wants kept."""

import json
from collections.abc import Mapping

from mlflow_deploy_plugin.monitoring.judgement import Evidence, Judgement, document_of
from mlflow_deploy_plugin.monitoring.reports.drawn import Drawn, draw
from mlflow_deploy_plugin.monitoring.reports.page import PAGE, page_of

DOCUMENT, EVIDENTLY = "verdict.json", "evidently.json"
LARGEST_PAGE = 6_000_000
"""Bytes; MLflow's viewer takes a page as one text into a frame, and becomes slow beyond."""
_MOST_COLUMNS = 30  # drawn in some ten seconds


def build_report(judgement: Judgement, evidence: Evidence) -> Mapping[str, str | bytes]:
    """The files of the run by name: text, or bytes as they are to be stored.

    Evidently draws where there are rows to draw; where it cannot, the page says why and has everything else.
    """
    columns, drawn = _MOST_COLUMNS, Drawn()
    while evidence.pairs and judgement.state != "not judged":
        drawn = draw(judgement, evidence.pairs, columns)
        if len(drawn.page) <= LARGEST_PAGE * 0.9 or columns <= 1:
            break
        columns //= 2
    files: dict[str, str | bytes] = dict(evidence.artifacts)
    files[PAGE] = page_of(judgement, drawn)
    files[DOCUMENT] = json.dumps(document_of(judgement), indent=1, allow_nan=False)
    if drawn.figures:
        files[EVIDENTLY] = drawn.figures
    return files
