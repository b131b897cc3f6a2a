"""The training of a retraining: its rows, its run, and how it ends."""

from dataclasses import replace
from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.retraining import process, tracking
from mlflow_deploy_plugin.controller.retraining.context import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan, plan_of, run_event, version_event
from mlflow_deploy_plugin.controller.retraining.training_data import collect_training_data
from mlflow_deploy_plugin.deployments import check_project
from mlflow_deploy_plugin.inference_log import open_log
from mlflow_deploy_plugin.store import Retraining

MAX_TRAININGS = 2
"""A training that was killed from outside is begun once more; one that fails by itself is not."""
SILENT = timedelta(minutes=2)
"""Eight heartbeats: no machine's clock should be as wrong."""
SECOND_LOOK = timedelta(seconds=30)


def start_training(context: RetrainingContext, one: Retraining) -> None:
    """Collect the rows, make the run, and start the training."""
    plan = plan_of(one)
    check_project(plan.project, plan.entry_point, plan.parameters)
    folder = context.folder(one)
    types = tracking.column_types(plan.base_uri)
    endpoint = context.deployments.store.endpoint(plan.endpoint)
    since = endpoint.rows_since if endpoint is not None else None
    data = collect_training_data(open_log(context.deployments.settings.inference_log, since), plan, folder, types)
    figures = {
        "attempt": one.figures.get("attempt", 1),
        "host": process.host(),
        "rows": data.rows,
        "held_out_rows": data.held_out_rows,
        "window": str(data.window),
        "started_at": context.clock().isoformat(),
    }
    # every project is given these; the spec's own parameters win
    parameters = {
        "mode": plan.mode,
        "data": str(data.data),
        "base_model": plan.base_uri,
        "registered_model": plan.model,
        **{name: _parameter_text(value) for name, value in plan.parameters.items()},
    }
    run_id = tracking.ensure_run(one, plan, figures["attempt"], parameters)
    if data.held_out is not None:
        figures |= {"dataset": tracking.log_file(run_id, data.held_out), "target": data.target}
    running = replace(one, state="running", run_id=run_id, figures=figures, reason="")
    written = context.write(running, run_event(running, context.actor, context.clock()))
    if written is not None:
        process.start(plan, run_id, parameters, folder)


def watch_training(context: RetrainingContext, one: Retraining) -> None:
    """Write down the version that the run has registered, or that the run has failed. Do nothing while it goes on."""
    plan, now = plan_of(one), context.clock()
    is_late = now > _started_at(one) + timedelta(seconds=plan.timeout)
    if process.is_alive(one.run_id):
        if is_late:
            _end_late(context, one, plan)
        return
    run = tracking.get_run(one.run_id)
    if run.status == "FAILED" or (run.status == "RUNNING" and process.has_failed(one.run_id)):
        tracking.end_run(one.run_id, "FAILED")
        context.fail(one, f"the run failed: {_last_line(context, one)}")
    elif version := tracking.registered_version(plan.model, one.run_id):
        tracking.tag_provenance(one, plan, version)
        registered = replace(one, state="registered", version=version, reason="")
        context.write(registered, version_event(registered, context.actor, now))
    elif run.status == "FINISHED":
        logged = ", and has logged no model"
        if run.has_logged_a_model:
            logged = ": it has logged a model, which its project has to register under the name in `registered_model`"
        context.fail(one, f"the run has registered no version of {plan.model}{logged}")
    elif is_late:
        _end_late(context, one, plan)
    elif run.status == "KILLED" or _is_here(one) or _is_silent(context, one, run):
        _train_again(context, one)


def end_training(one: Retraining) -> None:
    """End its processes and its run. A training on another machine ends itself when it sees that its run has ended."""
    if one.run_id:
        process.end(one.run_id)
        tracking.end_run(one.run_id, "KILLED")


def _is_here(one: Retraining) -> bool:
    return bool(one.figures["host"] == process.host())


def _is_silent(context: RetrainingContext, one: Retraining, run: tracking.TrainingRun) -> bool:
    """Return True if a training of another machine, or of this one before its restart, has ended without a word."""
    now, alive_at = context.clock(), run.alive_at or _started_at(one)
    where = f"its training runs on {one.figures['host']}"
    if now - alive_at < SILENT:
        context.wait(one, where)
        return False
    # while MLflow was down no heartbeat could be written: the training is given time for one
    reason = f"{where}, or has ended: it has said nothing since {alive_at:%Y-%m-%d %H:%M:%S}Z"
    if one.reason != reason:
        context.wait(one, reason)
        return False
    return now - one.updated_at > SECOND_LOOK


def _started_at(one: Retraining) -> datetime:
    return datetime.fromisoformat(one.figures["started_at"])


def _last_line(context: RetrainingContext, one: Retraining) -> str:
    if not context.folder(one).is_dir() and not _is_here(one):
        return f"its log is on {one.figures['host']}"
    return process.last_line(context.folder(one)) or "it has said nothing"


def _end_late(context: RetrainingContext, one: Retraining, plan: RetrainPlan) -> None:
    end_training(one)
    context.fail(one, f"the run took longer than {plan.timeout:g} s and was ended")


def _train_again(context: RetrainingContext, one: Retraining) -> None:
    """Begin the training once more: it was killed, or the machine has stopped."""
    attempt = one.figures["attempt"]
    end_training(one)
    if attempt >= MAX_TRAININGS:
        context.fail(one, f"the run was killed {attempt} times: {_last_line(context, one)}")
        return
    reason = f"run {one.run_id} was killed before its end; it is begun once more"
    context.write(replace(one, state="waiting", run_id="", figures={"attempt": attempt + 1}, reason=reason))


def _parameter_text(value: str | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
