"""`onnxserve monitor …`, `drift run` and `alert …`: monitors of endpoints with their
windows, results and alerts.
"""

import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    Commands,
    NumberRange,
    align_columns,
    engine_option,
    flag,
    key_values,
    name_argument,
    opened_deployments,
    opened_store,
    option,
    optional_name_argument,
    output_option,
    show_lines,
    show_progress,
    show_result,
    show_table,
    to_names,
    usage_errors,
    why_option,
)
from mlflow_deploy_plugin.core.errors import AlreadyExists, NotFound
from mlflow_deploy_plugin.core.extensions import PROFILES
from mlflow_deploy_plugin.core.messages import format_time, join_names, one_line
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind
from mlflow_deploy_plugin.core.spec.types import parse_duration
from mlflow_deploy_plugin.serve.inference_log.windows import Window, parse_window

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.alerts import Silence
    from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
    from mlflow_deploy_plugin.watch.monitors.schedule import MonitorOverview
    from mlflow_deploy_plugin.watch.result import Finding, MonitorResult, WindowRequest

_HEAD = (
    "ENDPOINT",
    "MONITOR",
    "KIND",
    "EVERY",
    "STATE",
    "LAST WINDOW",
    "VERDICT",
    "NEXT DUE (UTC)",
)
_SHOWN_FINDINGS = 8
_SHOWN = (
    "start",
    "end",
    "revision",
    "by_hand",
    "state",
    "verdict",
    "reason",
    "rows",
    "attempts",
    "run_id",
    "run_url",
)
"""The fields of a window in JSON output."""
_VERDICTS_WITH_REASON = ("could not be judged", "cannot tell", "not judged")
_monitor_argument = click.argument("monitor_name", metavar="MONITOR")
_monitor_option = option(
    "--monitor MONITOR",
    "monitor_name",
    "Monitor of the endpoint.",
    show_default="the only monitor; without monitors, a daily drift monitor",
)
_window_option = option(
    "--window START/END",
    "Half-open interval of event time in UTC: 2013-07-01/2013-08-01 or 2013-07-01/1d.",
    show_default="the latest complete window of the monitor that has rows",
)
_exit_code_flag = flag(
    "--exit-code",
    "Exit with the verdict: 0 without an alarm, 1 for `drift` or `violated`, 3 if there is no "
    "verdict (`cannot tell`, `not judged`, such as for too few rows).",
)
_EXIT_CODES = {"fine": 0, "changed": 0, "alarm": 1, "undecided": 3}


@click.group(cls=Commands)
def monitor() -> None:
    """Judge captured traffic on a schedule or by hand.

    `onnxserve controller` runs the schedule. The commands show results, change monitors
    and judge windows immediately.

    \b
      onnxserve monitor add flights daily --kind drift --every 1d
      onnxserve monitor list
      onnxserve monitor run flights --window 2013-07-01/2013-08-01
    """


@monitor.command("list")
@optional_name_argument
@output_option
def list_(name: str | None, output: str) -> None:
    """List the monitors of all endpoints or of NAME.

    The list shows the state, the last result and the next due time of each monitor.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
        from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
        from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
        from mlflow_deploy_plugin.watch.monitors.schedule import overviews

        watermarks = []
        with suppress(OSError):  # Without the log, list only the data of the store.
            watermarks = read_watermarks(locate_log(deployments.settings.inference_log))
        monitors = overviews(deployments.store, name, watermarks)
        lease = deployments.store.lease(STORE_LEASE)
        if name is None:
            for unreadable in deployments.store.unreadable():
                click.echo(unreadable.reason, err=True)
    limits = []
    notes = []
    for item in monitors:
        if item.false_per_year is not None:
            limits.append(f"{item.endpoint}: alarms.false_per_year is {item.false_per_year:g}")
        title = f"{item.endpoint} {item.monitor}"
        if item.why:
            notes.append(f"{title}: {item.why}")
        if item.given_up:
            notes.append(f"{title}: {item.given_up} of its windows could not be judged")
        if item.state.baseline:
            starts = [f"{key} since {format_time(at)}" for key, at in item.state.baseline.items()]
            notes.append(f"{title}: accepted baselines: {join_names(starts)}")
    show_table(
        output,
        [*map(monitor_document, monitors)],
        [_HEAD, *map(_monitor_row, monitors)],
        f"there are no monitors: run `onnxserve monitor add {name or 'NAME'} MONITOR`",
    )
    if output == "json" or not monitors:
        return
    # Monitors of an endpoint have the same limit.
    show_lines([*dict.fromkeys(limits), *notes])
    if lease is None or not lease.is_current:
        show_progress(
            "no controller runs: start `onnxserve controller` to judge the windows that are due"
        )


def _monitor_row(item: "MonitorOverview") -> tuple[str, ...]:
    """Return the cells of a monitor, with its last window and its next due time."""
    window = "-"
    verdict = "-"
    if item.last is not None:
        window = str(Window(item.last.start, item.last.end))
        verdict = item.last.outcome
        if item.last.by_hand:
            verdict += " (by hand)"
    due = f"{item.next_due:%Y-%m-%d %H:%M}" if item.next_due else "-"
    settings = (item.endpoint, item.monitor, item.spec.kind, item.spec.every)
    return (*settings, item.status, window, verdict, due)


@monitor.command()
@option("--keep DURATION", "Maximum age of windows and alerts: 90d, 400d.", required=True)
@flag("--dry-run", "Show the numbers of windows and alerts that would be deleted.")
def expire(keep: str, dry_run: bool) -> None:
    """Delete old windows and alerts of all monitors.

    Controllers may run at the same time. If ONNXSERVE_MONITOR_RETENTION_DAYS is set,
    they do the same once per hour. The command keeps windows that wait for a judgement,
    active alerts, the newest 200 windows of each monitor, the runs in MLflow, the audit
    trail, rollouts and retrainings.
    """
    from mlflow_deploy_plugin.core.store.expiry import MIN_DAYS
    from mlflow_deploy_plugin.core.store.expiry import expire as delete
    from mlflow_deploy_plugin.core.store.holds import require_above_floor

    with usage_errors():
        length = parse_duration(keep, "--keep")
    if length < timedelta(days=MIN_DAYS):
        raise click.UsageError(
            f"--keep {keep} is too short: late labels may change a window for {MIN_DAYS} days"
        )
    require_above_floor(length)
    with opened_store() as store:
        done = delete(store, length, only_count=dry_run)
    outcome = "would be deleted" if dry_run else "deleted"
    click.echo(f"{done.windows:,} windows and {done.alerts:,} alerts older than {keep} {outcome}")


@monitor.command()
@name_argument
@_monitor_option
@_window_option
@engine_option(
    PROFILES,
    "Engine that aggregates the rows: this process, or Spark for large logs. Both give the "
    "same numbers.",
)
@_exit_code_flag
@output_option
def run(name: str, **request: Any) -> None:
    """Judge a window of the endpoint NAME now.

    The result is logged to MLflow and stored like a scheduled result. The command sends
    no alert and starts no retraining. The verdict changes the exit status only with
    --exit-code.
    """
    _judge_window(name, **request)


@monitor.command("run-due")
@name_argument
@_monitor_option
def run_due(name: str, monitor_name: str | None) -> None:
    """Judge all due windows of the endpoint NAME like the controller.

    The command sends alerts and starts retrainings. It is intended for a CronJob. Exit
    status 1 if a window could not be judged.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.promote.gate.approvals import request_is_over
        from mlflow_deploy_plugin.watch.alerts.send import send_due
        from mlflow_deploy_plugin.watch.monitors import manual_runs

        selected_monitor = manual_runs.find_monitor(deployments, name, monitor_name)
        try:
            windows = manual_runs.run_due(deployments, selected_monitor, click.echo)
            states = [judged.state for judged in windows]
        finally:
            is_over = partial(request_is_over, deployments.store)
            send_due(deployments.store, deployments.settings, is_over=is_over)
    if not states:
        click.echo(f"{name}: monitor {selected_monitor.name}: no window is due")
    if set(states) - {"judged"}:
        sys.exit(1)


@monitor.command()
@name_argument
@_monitor_argument
@why_option
def pause(name: str, monitor_name: str, why: str) -> None:
    """Pause the monitor MONITOR of the endpoint NAME.

    The monitor judges no windows until it is resumed. It then judges the windows that
    it missed.
    """
    _set_paused(name, monitor_name, True, why)


@monitor.command()
@name_argument
@_monitor_argument
@why_option
def resume(name: str, monitor_name: str, why: str) -> None:
    """Resume the monitor MONITOR of the endpoint NAME."""
    _set_paused(name, monitor_name, False, why)


@monitor.command()
@name_argument
@_monitor_argument
@option(
    "--from TIME",
    "begin",
    "Start of the interval in UTC: 2013-07-01 or 2013-07-01T12:00.",
    required=True,
)
@option("--to TIME", "end", "End of the interval (exclusive).", show_default="now")
@flag("--again", "Judge windows again that already have a verdict.")
def backfill(name: str, monitor_name: str, begin: str, end: str | None, again: bool) -> None:
    """Judge the windows of an interval that have no verdict yet.

    The command waits for captured rows that are not in the log yet. The monitor MONITOR
    judges at most 10,000 windows per command, oldest first. After Ctrl-C, repeat the
    command to continue with the first window that is not judged. A window without a
    verdict, such as a window without rows, is judged again when its rows arrive. Exit
    status 1 if a window could not be judged.
    """
    with usage_errors():
        stop = end or datetime.now(UTC).isoformat()
        period = parse_window(f"{begin}/{stop}")
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log
        from mlflow_deploy_plugin.watch.monitors.manual_runs import backfill as backfill_windows
        from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor

        selected_monitor = find_monitor(deployments, name, monitor_name)
        counts: Counter[str] = Counter()
        number = 0
        count = 0
        try:
            for number, count, window, is_new in backfill_windows(
                deployments, selected_monitor, period.start, period.end, judge_and_log, again
            ):
                outcome = window.outcome or "could not be judged"
                if window.state == "failed":
                    counts["failed"] += 1
                elif window.verdict == "not judged":
                    counts["undecided"] += 1
                elif is_new:
                    counts["judged"] += 1
                else:
                    counts["passed over"] += 1
                note = "" if is_new or outcome == "not judged" else " (already judged)"
                if outcome in _VERDICTS_WITH_REASON:
                    outcome = f"{outcome}: {window.reason}"
                place = Window(window.start, window.end)
                click.echo(f"[{number}/{count}] {place}: {outcome}{note}")
        except KeyboardInterrupt:
            show_progress(
                f"interrupted after {number} of {count} windows; repeat the command to continue"
            )
            sys.exit(130)
    click.echo(
        f"{counts['judged']} windows judged, {counts['undecided']} without a verdict, "
        f"{counts['passed over']} already judged, {counts['failed']} could not be judged"
    )
    if counts["failed"]:
        sys.exit(1)


@monitor.command()
@name_argument
@_monitor_argument
@option("--kind", "Kind of the monitor.", type=click.Choice(get_args(MonitorKind)), default="drift")
@option("--every DURATION", "Length of a window in event time: 30m, 1h, 1d, 1w.", show_default="1d")
@option(
    "--schedule CRONTAB",
    "Times of the judgements in crontab syntax: '15 6 * * *'.",
    show_default="at the end of each window",
)
@option("--time-zone ZONE", "Time zone of the schedule: Europe/Berlin.", show_default="UTC")
@option(
    "--reference REFERENCE",
    "Data to compare a window with: training, rolling:7d, window:START/END or dataset:URI.",
    show_default="training",
)
@option("--require CRITERIA", "Criteria that must hold: accuracy>=0.8,f1>=0.7.")
@option(
    "-C --config FIELD=VALUE",
    "Field to set: min_rows=500, retrain.project=…. May be repeated.",
    multiple=True,
)
@why_option
def add(
    name: str, monitor_name: str, config: tuple[str, ...], why: str, **fields: str | None
) -> None:
    """Add the monitor MONITOR to the endpoint NAME.

    `onnxserve controller` judges its windows from its next poll on. The fields
    alarms.… of -C belong to all monitors of the endpoint, and all other fields to the
    monitor.
    """
    changes = {field: value for field, value in fields.items() if value is not None}
    changes |= key_values(config)
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.watch.monitors.alarm_budget import check_change

        stored = deployments.get_endpoint(name).endpoint
        if monitor_name in stored.spec.monitors:
            raise AlreadyExists(
                f"endpoint {name!r} already has a monitor {monitor_name!r}: change it with "
                f"`onnxserve endpoint update {name} -C monitors.{monitor_name}.FIELD=VALUE`"
            )
        dotted = {}
        for field, value in changes.items():
            if not field.startswith("alarms."):
                field = f"monitors.{monitor_name}.{field}"
            dotted[field] = value
        lines = check_change(deployments, name, dotted)
        deployments.update_endpoint(name, dotted, why)
        changed = deployments.get_endpoint(name).endpoint.spec
    for field, before in stored.spec.alarms:
        now = getattr(changed.alarms, field)
        if now != before and stored.spec.monitors:
            first = "its default" if before is None else f"{before:g}"
            lines.append(
                f"this changes alarms.{field} of all {len(changed.monitors)} monitors of {name} "
                f"from {first} to {now:g}"
            )
    show_lines([f"{name} has the monitor {monitor_name}", *lines])


@monitor.command()
@name_argument
@_monitor_argument
@option(
    "--column COLUMN",
    "columns",
    "Column whose baseline moves, in all rows and segments: delay. May be repeated.",
    multiple=True,
    show_default="all columns with an open alarm except the relations between columns",
)
@why_option
def accept(name: str, monitor_name: str, columns: tuple[str, ...], why: str) -> None:
    """Move the baseline of columns with an open alarm to the new level.

    The baseline of each column with an alarm of the monitor MONITOR in the newest
    window of the endpoint NAME now begins with its shift, and every check of the column
    continues. If no alarm of the window remains open, the window is shown as
    `accepted`, and the alert of the monitor ends. A monitor with a false_alarm_rate has
    no baseline.

    \b
      onnxserve monitor accept flights daily --column delay --why 'a new carrier'
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.watch.monitors.alarm_budget import accept_alarms

        accepted = accept_alarms(deployments, name, monitor_name, why, columns)
    lines = [*accepted.describe(), "every check continues, against the new baseline"]
    if accepted.still_open:
        lines.append(
            f"the alert continues: the alarms of {', '.join(accepted.still_open)} are not accepted"
        )
    show_lines(f"{name}: monitor {monitor_name}: {line}" for line in lines)


@monitor.command()
@name_argument
@_monitor_argument
@why_option
def remove(name: str, monitor_name: str, why: str) -> None:
    """Remove the monitor MONITOR from the endpoint NAME.

    The results of the monitor are kept.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.core.store.monitor_tables import Monitors

        deployments.remove_monitor(name, monitor_name, why)
        Monitors(deployments.store).forget(name, monitor_name)
    click.echo(f"{name} no longer has the monitor {monitor_name}")


@click.group(cls=Commands, example="run")
def drift() -> None:
    """Judge captured traffic against the model's reference."""


@drift.command("run")
@name_argument
@_window_option
@_monitor_option
@option(
    "--rows FILE",
    "Rows to judge instead of captured rows, Parquet or CSV. The report is logged to the "
    "experiment onnxserve/NAME; the endpoint NAME need not exist.",
)
@option("--reference FILE", "Rows to compare --rows with, e.g. the training rows.")
@option(
    "--min-rows ROWS",
    "Minimum number of rows; a smaller window is not judged.",
    type=POSITIVE,
    show_default="the monitor's",
)
@option(
    "--false-alarm-rate SHARE",
    "Share of windows without drift that may be reported as drifted.",
    type=NumberRange(0, 1, min_open=True, max_open=True),
    show_default="the monitor's",
)
@option(
    "--columns NAMES",
    "Columns to judge: temp,image.",
    callback=to_names,
    show_default="the monitor's",
)
@option("--exclude NAMES", "Columns to ignore: id,image.", callback=to_names, show_default="none")
@_exit_code_flag
@output_option
def run_drift(
    name: str,
    window: str | None,
    monitor_name: str | None,
    rows: str | None,
    reference: str | None,
    output: str,
    exit_code: bool,
    **bounds: Any,
) -> None:
    """Judge a window of the endpoint NAME now, with other bounds.

    Without other bounds or columns, the command is equal to `onnxserve monitor run`.
    With other bounds or columns, the result is logged only to MLflow and is not a
    verdict of the monitor. The same applies to a file of rows, which needs no endpoint:

    \b
      onnxserve drift run cancer --rows recent.csv --reference training.csv
    """
    if rows is not None or reference is not None:
        if rows is None or reference is None or window is not None or monitor_name is not None:
            raise click.UsageError(
                "--rows and --reference must be specified together, without --window and --monitor"
            )
        # Print the line before imports that take seconds.
        show_progress(f"comparing {rows} with {reference}")
        from mlflow_deploy_plugin.core.settings import load_settings
        from mlflow_deploy_plugin.watch.monitors.manual_runs import run_files

        stored, result = run_files(name, rows, reference, load_settings(), _judge, **bounds)
        _show_result(stored, result, output, exit_code)
        return
    _judge_window(name, monitor_name, window, output, exit_code, **bounds)


@click.group(cls=Commands, example="silence")
def alert() -> None:
    """Silence the alerts of monitors for a limited time."""


@alert.command()
@name_argument
@option(
    "--monitor MONITOR",
    "Monitor whose alerts are silenced.",
    default="",
    show_default="all monitors of the endpoint",
)
@option("--for DURATION", "length", "Duration from now: 30m, 2h, 7d.", required=True)
@why_option
def silence(name: str, monitor: str, length: str, why: str) -> None:
    """Silence the alerts of an endpoint for a limited time.

    The monitors of the endpoint NAME continue to judge. When the silence ends, alarms
    that are still active are sent.

    \b
      onnxserve alert silence flights --monitor daily --for 2h --why 'a known storm'
    """
    with opened_store() as store:
        from mlflow_deploy_plugin.core.store.alerts import Silences

        with usage_errors():
            duration = parse_duration(length, "--for")
        spec = store.require_endpoint(name).spec
        if monitor:
            spec.monitor(monitor)  # Raises for an unknown name.
        added = Silences(store).add(name, monitor, duration, why)
        show_lines([_silence_line(added)])


@alert.command()
@optional_name_argument
@output_option
def silences(name: str | None, output: str) -> None:
    """List the active silences of all endpoints or of NAME."""
    with opened_store() as store:
        from mlflow_deploy_plugin.core.store.alerts import Silences

        active = Silences(store).active(name)
        if not active and name is not None:
            store.require_endpoint(name)  # Raises for an unknown name.
    documents = [{**asdict(entry), "monitor": entry.monitor or None} for entry in active]
    endpoint = name or "NAME"
    empty = f"no silence is active: run `onnxserve alert silence {endpoint} --for 2h`"
    show_result(output, documents, [*map(_silence_line, active)] or [empty])


@alert.command()
@click.argument("number", metavar="ID", type=POSITIVE)
@why_option
def unsilence(number: int, why: str) -> None:
    """End the silence with this ID early.

    `onnxserve alert silences` lists the IDs. Alarms that are still active are sent.
    """
    with opened_store() as store:
        from mlflow_deploy_plugin.core.store.alerts import Silences

        if Silences(store).end(number, why) is None:
            raise NotFound(
                f"there is no silence {number}; `onnxserve alert silences` lists the active ones"
            )
    click.echo(f"silence {number} is over")


def _judge_window(
    name: str,
    monitor_name: str | None,
    window: str | None,
    output: str,
    exit_code: bool,
    engine: str = "local",
    **bounds: Any,
) -> None:
    """Judge a window now and show the result. The result is not stored if `bounds`
    override fields of the spec.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor, run_window

        with usage_errors():
            parsed = parse_window(window) if window is not None else None
        monitor = find_monitor(deployments, name, monitor_name).with_bounds(**bounds)

        def judge(request: "WindowRequest") -> "MonitorResult":
            """Print what is judged before the imports, which take seconds, and judge
            it.
            """
            show_progress(f"judging {request.window} of {name}: {request.spec.kind}")
            return _judge(request)

        stored, result = run_window(deployments, monitor, parsed, judge, engine)
    _show_result(stored, result, output, exit_code)


def _judge(request: "WindowRequest") -> "MonitorResult":
    from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log

    return judge_and_log(replace(request, progress=show_progress))


def _show_result(
    stored: "MonitorWindow", result: "MonitorResult", output: str, exit_code: bool
) -> None:
    """Print a result and its stored window: the verdict, the worst findings and the
    address of the report, or JSON with all findings and figures.
    """
    from mlflow_deploy_plugin.watch.result import NO_EFFECT, SD_LEGEND, mark_of, to_document

    document = {
        "endpoint": result.endpoint,
        "monitor": result.monitor,
        "kind": result.kind,
        "model": result.model,
        "version": result.version,
        **_window_document(stored),
        "findings": to_document(result)["findings"],
        "figures": dict(stored.figures),
        "notes": list(result.notes),
    }
    revision = f" (revision {stored.revision})" if stored.revision > 1 else ""
    lines = [f"{result.endpoint} {result.monitor} {result.window}{revision}: {result.state}"]
    model = f"model {result.model} version {result.version}, " if result.model else ""
    lines.append(f"  {model}{result.rows:,} rows")
    if result.reason:
        lines.append(f"  {result.reason}")
    findings = [finding for finding in result.findings if finding.reason != result.reason]
    shown = findings[:_SHOWN_FINDINGS]
    is_headed = False
    for finding, row in zip(shown, align_columns([*map(_finding_row, shown)]), strict=True):
        if finding.has_no_effect and not is_headed:
            lines.append(f"  drift {NO_EFFECT}:")
        is_headed = finding.has_no_effect
        lines.append(row)
    if any(finding.unit == "SD" for finding in shown):
        lines.append(f"  {SD_LEGEND}")
    hidden = len(findings) - len(shown)
    if hidden:
        plural = "" if hidden == 1 else "s"
        lines.append(f"  and {hidden} more finding{plural}, in the report")
    lines += map("  note: {}".format, result.notes)
    report = result.run.url or f"run {result.run.run_id} in experiment {result.run.experiment}"
    lines.append(f"  report: {report}")
    show_result(output, document, lines)
    if exit_code:
        sys.exit(_EXIT_CODES[mark_of(stored.outcome)])


def _set_paused(name: str, monitor_name: str, is_paused: bool, why: str) -> None:
    """Pause or resume a monitor, and print its state. Raises an error for an unknown
    endpoint or monitor.
    """
    with opened_deployments() as deployments:
        from mlflow_deploy_plugin.core.store.monitor_tables import Monitors

        deployments.store.require_endpoint(name).spec.monitor(monitor_name)
        is_changed = Monitors(deployments.store).pause(name, monitor_name, is_paused, why=why)
    if is_paused:
        state = "paused"
    else:
        state = "resumed" if is_changed else "not paused"
    click.echo(f"{name}: monitor {monitor_name} is {state}")


def monitor_document(overview: "MonitorOverview") -> dict[str, object]:
    """Return the JSON of a monitor. `last` and `open` are None without a window."""
    return {
        "endpoint": overview.endpoint,
        "monitor": overview.monitor,
        "kind": overview.spec.kind,
        "every": overview.spec.every,
        "schedule": overview.spec.schedule,
        "false_per_year": overview.false_per_year,
        "state": overview.status,
        "why": overview.why,
        "paused_by": overview.state.paused_by,
        "consecutive": overview.state.consecutive,
        "next_due": overview.next_due,
        "given_up": overview.given_up,
        "baseline": overview.state.baseline,
        "last": overview.last and _window_document(overview.last),
        "open": overview.open and _window_document(overview.open),
    }


def _window_document(window: "MonitorWindow") -> dict[str, object]:
    shown = {name: getattr(window, name) for name in _SHOWN}
    return {**shown, "verdict": window.outcome, "accepted": window.accepted}


def _finding_row(finding: "Finding") -> tuple[str, ...]:
    """Return the cells of a finding: title, check, value, threshold, and its history or
    state.
    """
    value = f"{finding.measure} {finding.value_text}".strip() if finding.value_text else ""
    threshold = f"threshold {finding.threshold_text}" if finding.threshold_text else ""
    status = finding.history
    if not finding.since:
        reason = finding.history
        if not reason and finding.value is None:
            reason = finding.reason
        status = f"{finding.state}: {reason}" if reason else finding.state
    return (f"  {one_line(finding.title)}", finding.check, value, threshold, status)


def _silence_line(silence: "Silence") -> str:
    """Return the id of a silence, its scope, its end, who silenced and why."""
    if silence.monitor:
        scope = f"{silence.endpoint}, monitor {silence.monitor}"
    else:
        scope = f"{silence.endpoint}, all monitors"
    why = f": {silence.why}" if silence.why else ""
    return f"{silence.id}  {scope}, until {silence.until:%Y-%m-%d %H:%M}Z by {silence.actor}{why}"
