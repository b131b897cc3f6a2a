"""The page of a judged window: it stands alone, and MLflow shows it in a sandboxed frame."""

import base64
import html
import math
from collections.abc import Mapping, Sequence

from mlflow_deploy_plugin.monitoring.judgement import ALARMS, UNDECIDED, Finding, Judgement
from mlflow_deploy_plugin.monitoring.reports.drawn import Drawn

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


def page_of(judgement: Judgement, drawn: Drawn) -> str:
    """The verdict, every finding and what Evidently has drawn."""
    page = drawn.page or _EMPTY
    start = page.find("<body")
    end = page.find(">", start) + 1
    return page[:end] + _head(judgement, drawn) + page[end:]


def with_picture(files: Mapping[str, str | bytes], picture: bytes) -> Mapping[str, str | bytes]:
    """The files with the picture of the last windows: as a file, and within the page, which can fetch nothing."""
    page = files.get(PAGE)
    if not picture:
        return files
    if not isinstance(page, str):
        return {**files, PICTURE: picture}
    data = base64.b64encode(picture).decode()
    shown = f"<img alt='the last windows of this monitor' src='data:image/png;base64,{data}'>"
    return {**files, PAGE: page.replace(_PICTURE_HERE, shown, 1), PICTURE: picture}


def summary(judgement: Judgement) -> str:
    """What was judged and why it is so, in a sentence or two."""
    return f"{judgement.reason.rstrip('.') or f'{judgement.rows:,} rows of the window were judged'}."


def _head(judgement: Judgement, drawn: Drawn) -> str:
    title = f"{judgement.endpoint}, {judgement.monitor}, {judgement.window}"
    answered = f"{judgement.model} version {judgement.version}" if judgement.model else "no version answered"
    revision = f", revision {judgement.revision}" if judgement.revision > 1 else ""
    notes = [*judgement.notes, *drawn.notes, *(f"{name}: {why}" for name, why in drawn.left_out.items())]
    parts = [
        f"<style>{_STYLE}</style><div class='onnxserve'>",
        f"<h1>{_text(title)}: <span class='{_class(judgement.state)}'>{judgement.state}</span></h1>",
        f"<p>{_text(summary(judgement))}</p>",
        f"<p class='note'>{_text(answered)}, {judgement.rows:,} rows{revision}</p>",
        _PICTURE_HERE,
        _findings(judgement.findings),
        *(f"<p class='note'>Note: {_text(note.rstrip('.'))}.</p>" for note in notes),
        _figures(judgement.figures),
        "</div>",
    ]
    return "".join(parts)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    has_segments = any(finding.segment for finding in findings)
    has_since = any(finding.since for finding in findings)
    names = [
        "what",
        *(["of"] if has_segments else []),
        "check",
        "outcome",
        *(["since (UTC)"] if has_since else []),
        "value",
        "threshold",
        "why",
    ]
    rows = [
        "<tr>"
        f"<td>{_cell(finding.subject)}{f'<td>{_cell(finding.segment)}' if has_segments else ''}"
        f"<td class=s>{finding.check}"
        f"<td class='s {_class(finding.state)}'>{finding.state}"
        f"{f'<td class=s>{_moment(finding.since)}' if has_since else ''}<td class=n>{_number(finding.value)}"
        f"<td class=n>{_number(finding.threshold)}<td>{_cell(finding.reason)}</tr>"
        for finding in findings[:_MOST_FINDINGS]
    ]
    rest = len(findings) - len(rows)
    more = f"<p class='note'>{rest:,} more findings stand in verdict.json.</p>" if rest else ""
    return f"<table><tr>{''.join(f'<th>{name}' for name in names)}</tr>{''.join(rows)}</table>{more}"


def _figures(figures: Mapping[str, float]) -> str:
    if not figures:
        return ""
    rows = [
        f"<tr><td>{_text(name)}<td class=n>{_number(value)}</tr>"
        for name, value in list(figures.items())[:_MOST_FIGURES]
    ]
    return f"<details><summary>Figures</summary><table>{''.join(rows)}</table></details>"


def _moment(time: str) -> str:
    return _text(time[:16].replace("T", " "))


def _class(state: str) -> str:
    return "alarm" if state in ALARMS else "open" if state in UNDECIDED else "fine"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value == int(min(max(value, -1e15), 1e15)) else f"{value:.4g}"


def _cell(text: str) -> str:
    """What stands in verdict.json as a whole: names may be of any length, and the page has to stay small."""
    return _text(text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…")


def _text(value: object) -> str:
    return html.escape(str(value))
