"""A result in MLflow: a run with the report, a run for all windows of the monitor, and
tags of the model version.

A window's run is identified by the tags endpoint, monitor, window start and revision,
so that a retry after a crash continues the run. The report's page is a single file,
because MLflow shows the page in a sandboxed frame.
"""

import base64
import contextlib
import hashlib
import html
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlflow_deploy_plugin.core.errors import NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.runs import (
    IdempotentRun,
    LoggedRun,
    log_metrics,
    project_run_id,
)
from mlflow_deploy_plugin.core.registry.tags import (
    MAX_TAG_LENGTH,
    tag_version,
    write_description_section,
)
from mlflow_deploy_plugin.core.registry.window_runs import (
    CREATED_TAG,
    DOCUMENT,
    END_TAG,
    ENDPOINT_TAG,
    KIND_TAG,
    MONITOR_TAG,
    PAGE,
    PREFIX,
    REVISION_TAG,
    SERIES_TAG,
    SERIES_UNTIL_TAG,
    START_TAG,
    TRIED_TAG,
    TRIED_VERDICT_TAG,
    VERDICT_TAG,
)
from mlflow_deploy_plugin.watch.reports import trend
from mlflow_deploy_plugin.watch.reports.evidently_charts import EvidentlyReport, draw_columns
from mlflow_deploy_plugin.watch.result import (
    NO_EFFECT,
    SD_LEGEND,
    MonitorResult,
    State,
    format_number,
    mark_of,
    other_alarms,
    to_document,
)
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow

if TYPE_CHECKING:
    from mlflow import MlflowClient

_EMPTY = (
    "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
    "content='width=device-width'></head><body></body></html>"
)
EVIDENTLY = "evidently.json"
LARGEST_PAGE = 6_000_000
"""The maximum size of a page in bytes. MLflow's viewer loads a page as a single text
and is slow for larger pages.
"""
_MOST_COLUMNS = 5  # Evidently draws a column seven times, which takes 0.2 s.
_WINDOW = "/window"
_REPORT = "/report"
_MOST_REPORTS = 10
_LONGEST_NAME = 200  # MLflow's limit is 250.
_NO_PATH = "\0"
_VERBS: Mapping[State, str] = {
    "drift": "has drifted",
    "changed": "has changed",
    "violated": "has violated its requirement",
}
_STATES: Mapping[State, float] = {"kept": 0.0, "cannot tell": 0.5, "violated": 1.0}
_MOST_METRICS = 300  # This number is enough for the UI, and needs one API call per window.


def build_report(
    result: MonitorResult,
    past: Sequence[JudgedWindow] = (),
) -> Mapping[str, str | bytes]:
    """Return the files of the run by name, as text or bytes. If Evidently fails, the
    page contains the reason.
    """
    charts = EvidentlyReport()
    if result.report.pairs:
        columns = _MOST_COLUMNS
        charts = draw_columns(result, result.report.pairs, columns)
        # Findings and the picture need a tenth of the page.
        while len(charts.page) > LARGEST_PAGE * 0.9 and columns > 1:
            columns //= 2
            charts = draw_columns(result, result.report.pairs, columns)
    this = JudgedWindow(result.window.start, result.state, result.evidence)
    windows = [*past, this][-trend.MOST_WINDOWS :]
    levels = trend.level_lines(result, windows)
    lines = trend.trend_lines(result, windows, levels)
    pictures = trend.draw_trend([*levels, *lines], result.window.length)
    files: dict[str, str | bytes] = dict(result.report.artifacts)
    files[PAGE] = _render_page(result, charts, pictures)
    files[DOCUMENT] = json.dumps(to_document(result), indent=1, allow_nan=False)
    if charts.figures:
        files[EVIDENTLY] = charts.figures
    return files


def _render_page(
    result: MonitorResult,
    charts: EvidentlyReport,
    pictures: Sequence[trend.Picture],
) -> str:
    """Return the page of the report: the trend's pictures and the findings above
    Evidently's charts.
    """
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters |= {"number": format_number, "class": mark_of, "quote": shlex.quote}
    pages.filters["base64"] = lambda png: base64.b64encode(png).decode()
    alarms = [finding for finding in result.findings if finding.is_open]
    shown = [finding for finding in result.findings if not finding.has_no_effect]
    # A shift and its window have different means of a column.
    first = {finding.key: finding for finding in reversed(shown)}
    title = f"{result.endpoint}, {result.monitor}, {result.window}"
    # The sentence at the top has the first alarm with its start, its effect and its
    # size, and the names of the others.
    sentence = result.reason
    if alarms:
        worst = alarms[0]
        verb = _VERBS[worst.state]
        since = f" since the window of {worst.since_text}" if worst.since else ""
        size = worst.value_text
        if worst.threshold_text:
            size += f" (threshold {worst.threshold_text})"
        parts = [worst.change, worst.effect_text, size or worst.reason, *other_alarms(alarms)]
        sentence = f"{worst.title} {verb}{since}: {'; '.join(filter(None, parts))}"
        if result.estimate:
            sentence = f"{result.estimate}; {sentence}"
    main = pages.get_template("report.html").render(
        title=title,
        result=result,
        findings=sorted(shown, key=lambda finding: finding is not first[finding.key]),
        quiet=[finding for finding in alarms if finding.has_no_effect],
        no_effect=NO_EFFECT,
        alarms=alarms,
        sentence=sentence,
        charts=charts,
        pictures=pictures,
        sd_legend=SD_LEGEND,
    )
    page = (charts.page or _EMPTY).replace(
        "</head>",
        f"<title>{html.escape(title)}</title></head>",
        1,
    )
    body = page.find(">", page.find("<body")) + 1
    return page[:body] + main + page[body:]


def log_result(result: MonitorResult, files: Mapping[str, str | bytes]) -> LoggedRun:
    """Log the run, tag the registered version with the verdict and the report's
    location, and return the run. The run is the current MLflow project's run if any
    (`mlflow run . -e drift`). Otherwise it is the run of this revision of the window in
    the experiment `onnxserve/ENDPOINT`, which is created if missing. Results with
    overridden settings are not tagged. If MLflow does not answer, RegistryUnavailable
    is raised, and the next call continues the run.
    """
    figures = to_metrics(result)

    def log_content(client: "MlflowClient", run_id: str, times: int) -> None:
        end_ms = result.window.end_us // 1000
        log_metrics(client, run_id, result.model_id, figures.items(), end_ms, times)
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                target = Path(folder) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                data = content.encode() if isinstance(content, str) else content
                target.write_bytes(data)
            client.log_artifacts(run_id, folder)

    monitor = {ENDPOINT_TAG: result.endpoint, MONITOR_TAG: result.monitor}
    if result.endpoint_created:
        monitor[CREATED_TAG] = result.endpoint_created
    end = result.window.end.isoformat()
    identity = {**monitor, START_TAG: result.window.start.isoformat()}
    run_name = f"{result.monitor} {result.window}"
    if result.tried:
        run_name += f" {result.tried}"
        identity |= {END_TAG: end, TRIED_TAG: result.tried}
        verdict_tag = TRIED_VERDICT_TAG
    else:
        identity[REVISION_TAG] = str(result.revision)
        verdict_tag = VERDICT_TAG
    tags = {
        KIND_TAG: result.kind,
        "onnxserve.model": result.model,
        "onnxserve.version": result.version,
        END_TAG: end,
        "onnxserve.reason": result.reason[:MAX_TAG_LENGTH],
    }
    attempt = _find_run(result, identity, (verdict_tag, result.state))
    run = attempt.log(run_name, tags, log_content)
    if not result.tried:
        _log_series(result, figures, monitor)
        _link_report_to_version(result, run.page_of(PAGE))
    return run


def to_metrics(result: MonitorResult) -> dict[str, float]:
    """Return the figures, and the finite values of the findings:
    `distribution_score/COLUMN`, … for a column; `shift_state/COLUMN` (1 for an alarm)
    for a shift of its level; `criterion/accuracy`, `criterion_threshold/accuracy` and
    `criterion_state/accuracy` (0 kept, 0.5 cannot tell, 1 violated) for a requirement.
    """
    pairs: list[tuple[str, float | None]] = [
        ("rows", result.rows),
        ("is_alarm", float(result.is_alarm)),
    ]
    pairs += result.figures.items()
    for finding in result.findings:
        # A slash in a name is replaced, so that it does not separate parts.
        names = filter(None, (finding.subject, finding.segment))
        subject = "/".join(name.replace("/", _NO_PATH) for name in names)
        if finding.check == "criterion":
            pairs.append((f"criterion/{subject}", finding.value))
            pairs.append((f"criterion_threshold/{subject}", finding.threshold))
            pairs.append((f"criterion_state/{subject}", _STATES.get(finding.state)))
        else:
            pairs.append((f"{finding.check}_score/{subject}", finding.value))
        # The detector restarts, so its score does not show a lasting alarm.
        if finding.check == "shift":
            pairs.append((f"shift_state/{subject}", float(finding.is_open)))
    values: dict[str, float] = {}
    for name, value in pairs:
        if value is not None and math.isfinite(value):
            values.setdefault(name, float(value))
    counts = Counter(metric_name(name) for name in values)
    figures = {}
    for name, number in values.items():
        valid = metric_name(name)
        # Several names may become the same valid name.
        if counts[valid] > 1 and valid != name:
            valid = f"{valid}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        figures[valid] = number
    return figures


def metric_name(name: str) -> str:
    """Return a valid MLflow name: most punctuation is replaced, and the name is not a
    relative path.
    """
    plain = re.sub(r"[^\w.\- /]", "_", name).split("/")
    parts = (re.sub(r"^\.+|\.+$|\.\.+", "_", part).strip() or "_" for part in plain)
    return "/".join(parts)[:_LONGEST_NAME]


def _log_series(
    result: MonitorResult,
    figures: Mapping[str, float],
    monitor: Mapping[str, str],
) -> None:
    """Add the window's metrics to the run for all windows of the monitor, because
    MLflow draws metrics of a single run over time. The time is the window's end; the
    step is the window's number. Logging is idempotent.
    """
    if project_run_id():
        return  # `IdempotentRun` would log to the project's run.
    end = result.window.end_us
    length = result.window.end_us - result.window.start_us

    def log_content(client: "MlflowClient", run_id: str, times: int) -> None:
        log_metrics(
            client,
            run_id,
            model_id="",
            figures=islice(figures.items(), _MOST_METRICS),
            at_ms=end // 1000,
            step=end // length,
        )

    run = _find_run(
        result,
        {**monitor, SERIES_TAG: "windows"},
        (SERIES_UNTIL_TAG, result.window.end.isoformat()),
    )
    run.log(f"{result.monitor}: all windows", {KIND_TAG: result.kind}, log_content)


def _find_run(
    result: MonitorResult,
    identity: Mapping[str, str],
    done: tuple[str, str],
) -> IdempotentRun:
    """Return the run with the `identity` tags in the endpoint's experiment, which may
    not exist yet. The tag `done`, a name and a value, is set when the run is complete.
    """
    endpoint = result.endpoint
    return IdempotentRun(
        f"the experiment of endpoint {endpoint}",
        f"onnxserve/{endpoint}",
        identity,
        done,
    )


def _link_report_to_version(result: MonitorResult, report: str) -> None:
    """Tag the registered version with the monitor's newest window, and list the report
    in the description.
    """
    if not result.version.isdigit():
        return
    tag = f"{PREFIX}{result.endpoint}/{result.monitor}"
    try:
        with registry_errors(f"model {result.model} version {result.version}"):
            tags = dict(registry_client().get_model_version(result.model, result.version).tags)
        newest = None
        with contextlib.suppress(ValueError):  # A user may have set the tag by hand.
            newest = datetime.fromisoformat(tags.get(f"{tag}{_WINDOW}", "").partition("/")[0])
        if newest and newest.tzinfo and newest > result.window.start:
            return  # A window that was judged late is not the newest window.
        tags_to_write = {
            f"{tag}{_WINDOW}": f"{result.window.start.isoformat()}/{result.window.end.isoformat()}",
            f"{tag}{_REPORT}": report,
            # This tag is written last, because its readers need the tags before it.
            tag: result.state,
        }
        try:
            _write_tags(result.model, result.version, tags_to_write)
        except RegistryUnavailable:
            # MLflow fails if two clients create a tag at the same time.
            _write_tags(result.model, result.version, tags_to_write)
        # The table has a line per monitor, the newest window first.
        tags |= tags_to_write
        monitors = [
            name.removesuffix(_WINDOW)
            for name in tags
            if name.startswith(PREFIX) and name.endswith(_WINDOW)
        ]
        monitors.sort(key=lambda name: tags[name + _WINDOW], reverse=True)
        lines = ["| monitor | verdict | window (UTC) | |", "| --- | --- | --- | --- |"]
        for name in monitors[:_MOST_REPORTS]:
            start, _, end = tags[name + _WINDOW].partition("/")
            link = tags.get(name + _REPORT, "")
            if link.startswith(("http://", "https://")):
                link = f"[report]({link})"
            else:
                link = f"`{link}`"
            monitor = name.removeprefix(PREFIX).replace("/", ", ")
            lines.append(
                f"| {monitor} | {tags.get(name, '')} | {start[:16]} – {end[:16]} | {link} |",
            )
        write_description_section(result.model, result.version, lines)
    except NotFound:
        return  # The version was deleted; the run is kept.


def _write_tags(
    model: str,
    version: str,
    tags: Mapping[str, str],
) -> None:
    for name, value in tags.items():
        tag_version(model, version, name, value)
