"""The files of a report: the page, every finding as JSON, and the artifacts of the monitor's kind.

The page needs no other file, since MLflow shows it in a sandboxed frame.
"""

import base64
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from mlflow_deploy_plugin.monitoring.reports.evidently_charts import EvidentlyReport, draw_columns
from mlflow_deploy_plugin.monitoring.result import ALARMS, UNDECIDED, Finding, MonitorResult, format_time, to_document

PAGE, PICTURE = "report.html", "trend.png"
_PICTURE_HERE = "<!-- picture of the last windows -->"
_MOST_FINDINGS, _MOST_FIGURES, _LONGEST_CELL = 300, 100, 300
_EMPTY = "<!doctype html><html lang='en'><head><meta charset='utf-8'></head><body></body></html>"
_STYLE = """
.onnxserve { font: 14px/1.45 system-ui, sans-serif; margin: 1rem 1.25rem; max-width: 64rem }
.onnxserve h1 { font-size: 1.3rem; margin: 0 0 .25rem } .onnxserve p { margin: .25rem 0 .75rem }
.onnxserve table { border-collapse: collapse; margin: .25rem 0 .75rem }
.onnxserve th, .onnxserve td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884;
  vertical-align: top; overflow-wrap: break-word; max-width: 14rem }
.onnxserve td:last-child { max-width: 24rem }
.onnxserve td.n, .onnxserve td.s { white-space: nowrap; font-variant-numeric: tabular-nums }
[id^=root_] { min-width: 62rem }
.onnxserve .alarm { color: #cf222e; font-weight: 600 } .onnxserve .fine { color: #1a7f37 }
.onnxserve .open, .onnxserve .note { color: #666 } .onnxserve img { max-width: 100% }
.onnxserve summary { cursor: pointer }
"""
DOCUMENT, EVIDENTLY = "verdict.json", "evidently.json"
LARGEST_PAGE = 6_000_000
"""Bytes; MLflow's viewer takes a page as one text into a frame, and becomes slow beyond."""
_MOST_COLUMNS = 30  # drawn in some ten seconds


def build_report(result: MonitorResult) -> Mapping[str, str | bytes]:
    """Return the files of the run by name: text, or bytes as they are to be stored.

    Evidently draws the rows of the report if there are any. If it fails, the page says why and has everything else.
    """
    columns, drawn = _MOST_COLUMNS, EvidentlyReport()
    while result.report.pairs and result.state != "not judged":
        drawn = draw_columns(result, result.report.pairs, columns)
        if len(drawn.page) <= LARGEST_PAGE * 0.9 or columns <= 1:
            break
        columns //= 2
    files: dict[str, str | bytes] = dict(result.report.artifacts)
    files[PAGE] = render_page(result, drawn)
    files[DOCUMENT] = json.dumps(to_document(result), indent=1, allow_nan=False)
    if drawn.figures:
        files[EVIDENTLY] = drawn.figures
    return files


def render_page(result: MonitorResult, drawn: EvidentlyReport) -> str:
    """Return the page with the verdict, every finding and the charts of Evidently."""
    title = f"{result.endpoint}, {result.monitor}, {result.window}"
    answered = f"{result.model} version {result.version}" if result.model else "no version answered"
    revision = f", revision {result.revision}" if result.revision > 1 else ""
    notes = [*result.notes, *drawn.notes, *(f"{name}: {why}" for name, why in drawn.left_out.items())]
    figures = "".join(
        f"<tr><td>{_text(name)}<td class=n>{_number(value)}</tr>"
        for name, value in islice(result.figures.items(), _MOST_FIGURES)
    )
    parts = [
        f"<style>{_STYLE}</style><div class='onnxserve'>",
        f"<h1>{_text(title)}: <span class='{_class(result.state)}'>{result.state}</span></h1>",
        f"<p>{_text(summary(result))}</p>",
        f"<p class='note'>{_text(answered)}, {result.rows:,} rows{revision}</p>",
        _PICTURE_HERE,
        _findings(result.findings) if result.findings else "",
        *(f"<p class='note'>Note: {_text(note.rstrip('.'))}.</p>" for note in notes),
        f"<details><summary>Metrics</summary><table>{figures}</table></details>" if figures else "",
        "</div>",
    ]
    page = drawn.page or _EMPTY
    end = page.find(">", page.find("<body")) + 1
    return page[:end] + "".join(parts) + page[end:]


def embed_picture(files: Mapping[str, str | bytes], picture: bytes) -> Mapping[str, str | bytes]:
    """Return the files with the picture of the last windows, also within the page, which can fetch nothing."""
    page = files.get(PAGE)
    if not picture:
        return files
    if not isinstance(page, str):
        return {**files, PICTURE: picture}
    data = base64.b64encode(picture).decode()
    shown = f"<img alt='the last windows of this monitor' src='data:image/png;base64,{data}'>"
    return {**files, PAGE: page.replace(_PICTURE_HERE, shown, 1), PICTURE: picture}


def summary(result: MonitorResult) -> str:
    """Return what was judged and the reason of the state, in a sentence or two."""
    return f"{result.reason.rstrip('.') or f'{result.rows:,} rows of the window were judged'}."


def _findings(findings: Sequence[Finding]) -> str:
    columns: dict[str, Callable[[Finding], str]] = {
        "what": lambda one: f"<td>{_cell(one.subject)}",
        "of": lambda one: f"<td>{_cell(one.segment)}",
        "check": lambda one: f"<td class=s>{one.check}",
        "outcome": lambda one: f"<td class='s {_class(one.state)}'>{one.state}",
        "since (UTC)": lambda one: f"<td class=s>{_text(format_time(one.since))}",
        "in a row": lambda one: f"<td class=n>{one.in_a_row or ''}",
        "value": lambda one: f"<td class=n>{_number(one.value)}",
        "threshold": lambda one: f"<td class=n>{_number(one.threshold)}",
        "change": lambda one: f"<td>{_cell(one.change)}",
        "why": lambda one: f"<td>{_cell(one.reason)}",
    }
    if not any(one.segment for one in findings):
        del columns["of"]
    if not any(one.since for one in findings):
        del columns["since (UTC)"], columns["in a row"]
    if not any(one.change for one in findings):
        del columns["change"]
    names = "".join(f"<th>{name}" for name in columns)
    rows = [f"<tr>{''.join(cell(one) for cell in columns.values())}</tr>" for one in findings[:_MOST_FINDINGS]]
    rest = len(findings) - len(rows)
    more = f"<p class='note'>{rest:,} more findings stand in verdict.json.</p>" if rest else ""
    return f"<table><tr>{names}</tr>{''.join(rows)}</table>{more}"


def _class(state: str) -> str:
    return "alarm" if state in ALARMS else "open" if state in UNDECIDED else "fine"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value == int(min(max(value, -1e15), 1e15)) else f"{value:.4g}"


def _cell(text: str) -> str:
    """Return the text, shortened so that the page stays small; verdict.json has it whole."""
    return _text(text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…")


def _text(value: object) -> str:
    return html.escape(str(value))
