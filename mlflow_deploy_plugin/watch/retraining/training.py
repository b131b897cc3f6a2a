"""The training of a retraining: collect the rows, start the MLflow run, and process the
end of the run.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.core.spec.monitors import SampleSpec
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.core.spec.types import duration_seconds, length_of
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.retrainings import Retraining
from mlflow_deploy_plugin.core.store.tables import Json, RetrainingFigures
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.scan import microseconds_of
from mlflow_deploy_plugin.serve.inference_log.tables import Sample, hash_rows, splitmix64
from mlflow_deploy_plugin.serve.inference_log.windows import Window, microseconds, parse_window
from mlflow_deploy_plugin.serve.runtime.log_columns import cast_columns
from mlflow_deploy_plugin.ship.deployments.config import check_project
from mlflow_deploy_plugin.watch.retraining import process
from mlflow_deploy_plugin.watch.retraining.plan import (
    TRAINING_FILES,
    RetrainingContext,
    RetrainPlan,
    plan_of,
)

MAX_TRAININGS = 2
"""The maximum number of runs. A training that was killed is restarted once, a training
that failed is not.
"""
SILENT = timedelta(minutes=2)
"""The time without a heartbeat after which a training seems to have ended; clocks of
machines must differ by less.
"""
SECOND_LOOK = timedelta(seconds=30)
MAX_ROWS = 1_000_000
MIN_ROWS = 100
MAX_STRATA = 200
HELD_OUT = 0.2
"""The share of the labelled rows that is held out. These are the newest rows, because a
model predicts the future.
"""


def start_training(context: RetrainingContext, retraining: Retraining) -> None:
    """Collect the rows, create the MLflow run and log the held-out rows and the sample
    to it. Then store the state "running" and start the training process.

    The process is not started if another controller has advanced the retraining.
    """
    plan = plan_of(retraining)
    check_project(plan.project, plan.entry_point, plan.parameters)
    folder = context.folder(retraining)
    data = _collect(context, plan, folder)
    attempt = retraining.figures.attempt or 1
    figures = RetrainingFigures(
        attempt=attempt,
        host=process.host(),
        rows=data.rows,
        data_digest=data.digest,
        held_out_rows=data.held_out_rows,
        window=str(data.window),
        started_at=context.now(),
    )
    # A parameter in the spec replaces the one that is passed to every project.
    parameters = {
        "mode": plan.mode,
        "data": str(data.data),
        "base_model": plan.base_uri,
        "registered_model": plan.model,
    }
    for name, value in plan.parameters.items():
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        parameters[name] = str(value)
    run_id = process.ensure_run(retraining, plan, attempt, parameters)
    if data.held_out is not None:
        figures = replace(
            figures,
            dataset=process.log_file(run_id, data.held_out),
            target=data.target,
        )
    detail: Json = {
        "held_out_rows": data.held_out_rows,
        "window": figures.window,
        "attempt": attempt,
    }
    if plan.sample is not None:
        detail |= {"sample": plan.sample, "data_digest": data.digest}
        (folder / "sample.json").write_text(json.dumps(detail | data.sample, indent=2))
        process.log_file(run_id, folder / "sample.json")
    running = replace(retraining, state="running", run_id=run_id, figures=figures, reason="")
    trained_on = f"{data.rows:,} labelled rows up to {data.window.end_text}"
    if data.hidden:
        trained_on += (
            f", without {join_names(data.hidden)}: capture.drop or capture.mask removes the values "
            "from the log"
        )
    if plan.sample is not None:
        trained_on += (
            f", with {data.sample['selected']:,} of {data.sample['rows']:,} rows from before the "
            "window"
        )
    event = context.event(
        "retrain.run",
        running,
        before=f"version {plan.base_version}",
        after=f"run {run_id}",
        why=f"retraining {retraining.id} trains on {trained_on}",
        detail=detail,
    )
    if context.write(running, event):
        process.start(plan, run_id, parameters, folder)


def watch_training(context: RetrainingContext, retraining: Retraining) -> None:
    """Store the version that the run has registered, or the failure of the run. Do
    nothing while the run continues.
    """
    plan = plan_of(retraining)
    is_late = context.now() > _started_at(retraining) + timedelta(seconds=plan.timeout)
    if process.is_alive(retraining.run_id):
        if is_late:
            _end_late(context, retraining, plan)
        return
    run = process.get_run(retraining.run_id)
    has_exited = run.status == "RUNNING" and process.has_failed(retraining.run_id)
    if run.status == "FAILED" or has_exited:
        process.end_run(retraining.run_id, "FAILED")
        context.fail(retraining, f"the run failed: {_last_line(context, retraining)}")
    elif version := process.registered_version(plan.model, retraining.run_id):
        process.tag_provenance(retraining, plan, version)
        registered = replace(retraining, state="registered", version=version, reason="")
        event = context.event(
            "retrain.version",
            registered,
            before=f"version {plan.base_version}",
            after=f"version {version}",
            why=f"run {retraining.run_id} of retraining {retraining.id} registered the version",
        )
        context.write(registered, event)
    elif run.status == "FINISHED":
        logged = " and logged no model within `mlflow.start_run()`"
        if run.has_logged_a_model:
            logged = (
                ": it logged a model, but its project must register the model under the name in "
                "`registered_model`"
            )
        context.fail(retraining, f"the run registered no version of {plan.model}{logged}")
    elif is_late:
        _end_late(context, retraining, plan)
    elif run.status == "KILLED" or _is_here(retraining) or _is_silent(context, retraining, run):
        attempt = retraining.figures.attempt or 1
        end_training(retraining)
        if attempt >= MAX_TRAININGS:
            last = _last_line(context, retraining)
            context.fail(retraining, f"the run was killed {attempt} times: {last}")
            return
        reason = f"run {retraining.run_id} was killed; the training is restarted"
        figures = RetrainingFigures(attempt=attempt + 1)
        context.write(
            replace(retraining, state="waiting", run_id="", figures=figures, reason=reason),
        )


def end_training(retraining: Retraining) -> None:
    """End the training's processes on this machine, and its run. A training on another
    machine ends after its run.
    """
    if retraining.run_id:
        process.end(retraining.run_id)
        process.end_run(retraining.run_id, "KILLED")


def _is_here(retraining: Retraining) -> bool:
    return retraining.figures.host == process.host()


def _is_silent(
    context: RetrainingContext,
    retraining: Retraining,
    run: process.TrainingRun,
) -> bool:
    """Return True if a training on another machine, or on this machine before a reboot,
    sends no more heartbeats. Otherwise, store for what the retraining waits.
    """
    now = context.now()
    alive_at = run.alive_at or _started_at(retraining)
    where = f"the training runs on {retraining.figures.host}"
    if now - alive_at < SILENT:
        context.wait(retraining, where)
        return False
    # During an outage of MLflow, no heartbeat could be written: wait for a heartbeat
    # before the training is ended.
    reason = f"{where}, or has ended: no heartbeat since {alive_at:%Y-%m-%d %H:%M:%S}Z"
    if retraining.reason != reason:
        context.wait(retraining, reason)
        return False
    return now - retraining.updated_at > SECOND_LOOK


def _started_at(retraining: Retraining) -> datetime:
    return retraining.figures.started_at or retraining.created_at


def _last_line(context: RetrainingContext, retraining: Retraining) -> str:
    """Return the last line of the training's log, or why there is none."""
    if not context.folder(retraining).is_dir() and not _is_here(retraining):
        return f"the log is on {retraining.figures.host}"
    return process.last_line(context.folder(retraining)) or "the log is empty"


def _end_late(context: RetrainingContext, retraining: Retraining, plan: RetrainPlan) -> None:
    end_training(retraining)
    context.fail(retraining, f"the run exceeded its timeout of {plan.timeout:g} s and was stopped")


@dataclass(frozen=True)
class TrainingData:
    """The files that were written for a retraining.

    Attributes:
        data: Parquet file with the training rows: the model's columns, `_label`,
            `_label_number`, `_event_time`.
        held_out: a file with the same columns and the newest rows of the window; None
            if the rows cannot evaluate a model, for example because capture withholds
            one of its columns.
        target: the label column of `held_out` whose values can be compared with the
            model's output.
        digest: SHA-256 of `data`.
        window: the window of the newest rows; a full training also uses the rows before
            this window.
        sample: the number of rows before the window among which the sample selects, and
            of the selected rows.
        hidden: the model's columns that capture withholds.
    """

    data: Path
    held_out: Path | None
    target: str
    digest: str
    rows: int
    held_out_rows: int
    window: Window
    sample: Json
    hidden: Sequence[str]


def _collect(context: RetrainingContext, plan: RetrainPlan, folder: Path) -> TrainingData:
    """Collect the rows without the columns that the endpoint's capture withholds."""
    types = process.column_types(plan.base_uri)
    endpoint = context.deployments.store.endpoint(plan.endpoint)
    capture = endpoint.spec.capture if endpoint is not None else CaptureSpec()
    since = endpoint.rows_since if endpoint is not None else None
    log = open_log(context.deployments.settings.inference_log, since)
    withheld = {*capture.drop, *capture.mask, *capture.keys}
    return collect_training_data(log, plan, folder, types, withheld)


def collect_training_data(
    log: InferenceLog,
    plan: RetrainPlan,
    folder: Path,
    types: Mapping[str, str],
    withheld: Collection[str] = (),
) -> TrainingData:
    """Write the window's labelled rows to the folder, and labelled rows before the
    window: all rows for a full training, or the rows that `plan.sample` selects. The
    newest rows are held out and written to a file of their own.

    Args:
        types: the types to cast to, from the model's signature: the log may contain
            integers and booleans as floats.
        withheld: columns to omit, also from older rows, because capture drops or masks
            these columns or they are keys.

    Raises NotFound if no rows were captured, and InvalidConfig for too few rows, equal
    labels, or a column `stratify` that cannot define strata.
    """
    if plan.window:
        window = parse_window(plan.window)
    else:
        window = log.latest_window(plan.endpoint, plan.every, utc_now())
    rows = _labelled_rows(log, plan, window, withheld)
    if rows is None or len(rows) < MIN_ROWS:
        raise InvalidConfig(
            f"{window} has {len(rows or ())} labelled rows, but at least {MIN_ROWS} are needed: "
            "send the true labels with POST /feedback or `onnxserve feedback`",
        )
    hidden = sorted(types.keys() & withheld)
    if hidden:
        learned = _model_columns(rows)
        held_out = None
    else:
        learned, held_out = _hold_out(rows)
    earlier, sample = _select_earlier(log, plan, window, withheld)
    if earlier is not None:
        try:
            learned = pa.concat_tables(
                [_model_columns(earlier), learned], promote_options="permissive"
            )
        except pa.ArrowTypeError as error:
            # For example, the numbers of a column were hashed until the column was
            # removed from capture.mask.
            raise InvalidConfig(
                f"{one_line(error)} before {window.start:%Y-%m-%d %H:%M} and later: train in mode "
                "incremental with a shorter retrain.sample.recent, or without retrain.sample",
            ) from None
    if _distinct_labels(learned) < 2:
        raise InvalidConfig(
            f"all {len(learned):,} labels up to {window.end:%Y-%m-%d} are "
            f"{learned.column(LABEL)[0].as_py()!r}, so a model cannot be trained",
        )
    # The labels are texts if the model predicts texts or any label is not a number.
    target = LABEL_NUMBER
    if rows.column(LABEL_NUMBER).null_count or (
        PREDICTION in rows.column_names and pa.types.is_string(rows.schema.field(PREDICTION).type)
    ):
        target = LABEL
    folder.mkdir(parents=True, exist_ok=True)
    data, held_out_file = map(folder.joinpath, TRAINING_FILES)
    pq.write_table(_cast_to_signature(learned, types), data)
    if held_out is not None:
        # The gate casts these rows to the types of each version.
        pq.write_table(held_out, held_out_file)
    with data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return TrainingData(
        data=data,
        held_out=held_out_file if held_out is not None else None,
        target=target,
        digest=digest,
        rows=len(learned),
        held_out_rows=len(held_out) if held_out is not None else 0,
        window=window,
        sample=sample,
        hidden=hidden,
    )


def _select_earlier(
    log: InferenceLog,
    plan: RetrainPlan,
    window: Window,
    withheld: Collection[str],
) -> tuple[pa.Table | None, Json]:
    """Return the labelled rows before the window that the training also uses (None if
    it uses none), and the numbers of rows of the sample. Raises InvalidConfig if the
    column `stratify` cannot define strata.
    """
    since = window.start
    numbers = {"rows": 0, "selected": 0}
    if plan.mode == "full":
        since = next(
            (hour.start for hour in log.hours(plan.endpoint)),
            since,
        )
    elif plan.sample is not None:
        since = window.end - length_of(plan.sample["recent"])
    if since >= window.start:
        return None, numbers
    earlier = _labelled_rows(log, plan, Window(since, window.start), withheld)
    if earlier is None or plan.sample is None:
        return earlier, numbers
    selected = select_rows(earlier, SampleSpec(**plan.sample), window.start)
    return selected, {"rows": len(earlier), "selected": len(selected)}


def select_rows(rows: pa.Table, sample: SampleSpec, until: datetime) -> pa.Table:
    """Return the rows that the sample selects from the rows before `until`.

    Each row has a number in [0, 1) that depends only on its identity. The row is
    selected if the number is below its probability: the fraction, halved for each
    half-life between the row and `until`. With `stratify`, the number is replaced by
    rank / n among the n rows of the same value, and the first row of each value is
    always selected.

    Raises InvalidConfig if the column `stratify` is missing, has lists or bytes, or
    more than `MAX_STRATA` values.
    """
    # Hash once more: if there are more than `MAX_ROWS` rows, `Sample` has kept the rows
    # with the smallest hashes.
    numbers = (splitmix64(hash_rows(rows)) >> np.uint64(11)) / 2.0**53
    probabilities = np.full(len(rows), sample.fraction)
    if sample.weight is not None:
        ages = (microseconds(until) - microseconds_of(rows.column(EVENT_TIME))) / 1e6
        probabilities *= np.exp2(-ages / duration_seconds(sample.weight))
    is_selected = numbers < probabilities
    if sample.stratify is not None:
        name = sample.stratify
        kind = rows.schema.field(name).type if name in rows.column_names else None
        problem = ""
        if kind is None:
            problem = "is missing"
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind):
            problem = f"contains values of type {kind}"
        else:
            values = rows.column(name).cast(pa.string())
            count = pc.count_distinct(values, mode="all").as_py()
            if count > MAX_STRATA:
                problem = f"has {count:,} values"
        if problem:
            raise InvalidConfig(
                f"retrain.sample.stratify: column {name!r} {problem} in the rows before the "
                f"window: name a column with at most {MAX_STRATA} values, or {LABEL}",
            )
        # A dense rank is the number of the value, from 1.
        codes = pc.rank(values, tiebreaker="dense").to_numpy().astype(int) - 1
        counts = np.bincount(codes)
        ranks = np.argsort(np.lexsort((numbers, codes))) - (np.cumsum(counts) - counts)[codes]
        is_selected = (ranks == 0) | (ranks / counts[codes] < probabilities)
    return rows.filter(pa.array(is_selected))


def _labelled_rows(
    log: InferenceLog,
    plan: RetrainPlan,
    window: Window,
    withheld: Collection[str],
) -> pa.Table | None:
    """Return the window's labelled rows of all versions of the model, sorted by event
    time; None if there are none.
    """
    sample = Sample(MAX_ROWS)
    is_empty = True
    for batch in log.batches(plan.endpoint, window):
        rows = batch.filter(pc.equal(batch.column("_model"), plan.model))
        if len(rows):
            sample.add(rows)
            is_empty = False
    if is_empty:
        return None
    table = log.labels(plan.endpoint).join(sample.table())
    table = table.filter(pc.is_valid(table.column(LABEL)))
    table = table.drop_columns([name for name in table.column_names if name in withheld])
    return table.sort_by(
        [(EVENT_TIME, "ascending"), ("_segment", "ascending"), ("_offset", "ascending")],
    )


def _hold_out(rows: pa.Table) -> tuple[pa.Table, pa.Table | None]:
    """Split the rows into older rows and the newest rows, and return the model's
    columns of both. Rows with the same event time remain together.

    No rows are held out (None) if either part has too few rows, or if the newest rows
    have only one label.
    """
    times = microseconds_of(rows.column(EVENT_TIME))
    first_held_out = times[int(len(times) * (1 - HELD_OUT))]
    boundary = int(np.searchsorted(times, first_held_out))
    learned = _model_columns(rows.slice(0, boundary))
    held_out = _model_columns(rows.slice(boundary))
    if len(learned) < MIN_ROWS or len(held_out) < MIN_ROWS or _distinct_labels(held_out) < 2:
        return _model_columns(rows), None
    return learned, held_out


def _distinct_labels(labelled: pa.Table) -> int:
    return int(pc.count_distinct(labelled.column(LABEL)).as_py())


def _model_columns(table: pa.Table) -> pa.Table:
    """Return the rows with the columns for a training: the model's inputs, the labels
    and the event time.
    """
    columns = (EVENT_TIME, LABEL, LABEL_NUMBER)
    names = [
        name
        for name in table.column_names
        if name in columns or not (name.startswith(("_", OUTPUT_PREFIX)) or name == PREDICTION)
    ]
    return table.select(names)


def _cast_to_signature(
    table: pa.Table,
    types: Mapping[str, str],
) -> pa.Table:
    """Cast number columns without nulls to the signature's types, so that the new
    version has the same signature.
    """
    dtypes = {name: COLUMN_TYPES[kind] for name, kind in types.items() if kind in COLUMN_TYPES}
    columns = {name: table.column(name) for name in table.column_names if name in dtypes}
    values = {name: column.to_numpy() for name, column in columns.items() if not column.null_count}
    for name, typed in cast_columns(dtypes, values).items():
        if typed is not values[name]:
            table = table.set_column(
                table.schema.get_field_index(name),
                name,
                pa.array(typed),
            )
    return table
