"""The training of a retraining: its rows, its run, and what becomes of both."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from mlflow_deploy_plugin.controller.retraining import process, tracking
from mlflow_deploy_plugin.controller.retraining.context import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan, plan_of, run_event, version_event
from mlflow_deploy_plugin.controller.retraining.training_data import collect_training_data
from mlflow_deploy_plugin.deployments.monitor_checks import check_project
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.store.retrainings import Retraining

MAX_TRAININGS = 2
"""A training that was killed from outside is begun once more; one that fails by itself is not."""
SILENT = timedelta(minutes=2)
"""Eight heartbeats: no machine's clock should be as wrong."""
SECOND_LOOK = timedelta(seconds=30)


def start_training(hands: RetrainingContext, one: Retraining) -> None:
    """Collects the rows, makes the run, and starts the training."""
    plan = plan_of(one)
    check_project(plan.project, plan.entry_point, plan.parameters)
    folder = hands.folder(one)
    types = tracking.column_types(plan.base_uri)
    endpoint = hands.deployments.store.endpoint(plan.endpoint)
    since = endpoint.rows_since if endpoint is not None else None
    material = collect_training_data(open_log(hands.deployments.settings.inference_log, since), plan, folder, types)
    figures = {
        "attempt": one.figures.get("attempt", 1),
        "host": process.host(),
        "rows": material.rows,
        "held_out_rows": material.held_out_rows,
        "window": str(material.window),
        "started_at": hands.clock().isoformat(),
    }
    parameters = _parameters(plan, material.data)
    run_id = tracking.ensure_run(one, plan, figures["attempt"], parameters)
    if material.held_out is not None:
        figures |= {"dataset": tracking.log_file(run_id, material.held_out), "target": material.target}
    running = replace(one, state="running", run_id=run_id, figures=figures, reason="")
    written = hands.write(running, run_event(running, hands.actor, hands.clock()))
    if written is not None:
        process.start(plan, run_id, parameters, folder)


def watch_training(hands: RetrainingContext, one: Retraining) -> None:
    """Waits for the run's end; what it has registered, or that it has failed, is written down."""
    plan, now = plan_of(one), hands.clock()
    is_late = now > _started_at(one) + timedelta(seconds=plan.timeout)
    if process.is_alive(one.run_id):
        if is_late:
            _end_late(hands, one, plan)
        return
    run = tracking.get_run(one.run_id)
    if run.status == "FAILED" or (run.status == "RUNNING" and process.has_failed(one.run_id)):
        tracking.end_run(one.run_id, "FAILED")
        hands.fail(one, f"the run failed: {_last_word(hands, one)}")
    elif version := tracking.registered_version(plan.model, one.run_id):
        tracking.tag_provenance(one, plan, version)
        registered = replace(one, state="registered", version=version, reason="")
        hands.write(registered, version_event(registered, hands.actor, now))
    elif run.status == "FINISHED":
        hands.fail(one, f"the run has registered no version of {plan.model}{_logged(run)}")
    elif is_late:
        _end_late(hands, one, plan)
    elif run.status == "KILLED" or _is_here(one) or _is_silent(hands, one, run):
        _begin_again(hands, one)


def end_training(one: Retraining) -> None:
    """Ends what runs of it. One on another machine ends itself, as soon as it sees that its run is ended."""
    if one.run_id:
        process.end(one.run_id)
        tracking.end_run(one.run_id, "KILLED")


def _is_here(one: Retraining) -> bool:
    return bool(one.figures["host"] == process.host())


def _is_silent(hands: RetrainingContext, one: Retraining, run: tracking.TrainingRun) -> bool:
    """Whether a training of another machine, or of this one before its start, has ended without a word."""
    now, alive_at = hands.clock(), run.alive_at or _started_at(one)
    where = f"its training runs on {one.figures['host']}"
    if now - alive_at < SILENT:
        hands.wait(one, where)
        return False
    # while MLflow was down nobody could say that it lives: it is given the time to
    reason = f"{where}, or has ended: it has said nothing since {alive_at:%Y-%m-%d %H:%M:%S}Z"
    if one.reason != reason:
        hands.wait(one, reason)
        return False
    return now - one.updated_at > SECOND_LOOK


def _logged(run: tracking.TrainingRun) -> str:
    if not run.has_logged_a_model:
        return ", and has logged no model"
    return ": it has logged a model, which its project has to register under the name in `registered_model`"


def _started_at(one: Retraining) -> datetime:
    return datetime.fromisoformat(one.figures["started_at"])


def _last_word(hands: RetrainingContext, one: Retraining) -> str:
    if not hands.folder(one).is_dir() and not _is_here(one):
        return f"its log is on {one.figures['host']}"
    return process.last_line(hands.folder(one)) or "it has said nothing"


def _end_late(hands: RetrainingContext, one: Retraining, plan: RetrainPlan) -> None:
    end_training(one)
    hands.fail(one, f"the run took longer than {plan.timeout:g} s and was ended")


def _begin_again(hands: RetrainingContext, one: Retraining) -> None:
    """Nothing of the training is left: it was killed, or the machine has stopped."""
    attempt = one.figures["attempt"]
    end_training(one)
    if attempt >= MAX_TRAININGS:
        hands.fail(one, f"the run was killed {attempt} times: {_last_word(hands, one)}")
        return
    reason = f"run {one.run_id} was killed before its end; it is begun once more"
    hands.write(replace(one, state="waiting", run_id="", figures={"attempt": attempt + 1}, reason=reason))


def _parameters(plan: RetrainPlan, data: Path) -> dict[str, str]:
    """What every project of a retraining is given, and what the spec adds, which wins."""
    own = {"mode": plan.mode, "data": str(data), "base_model": plan.base_uri, "registered_model": plan.model}
    return own | {name: _text(value) for name, value in plan.parameters.items()}


def _text(value: str | float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
