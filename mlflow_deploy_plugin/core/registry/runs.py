"""MLflow runs: logs to the project's run or to a new run, tags, and metrics in batches.

MLflow does not have unique keys. Therefore tags identify an `IdempotentRun`, and a
process searches for these tags before it creates a run. If two processes create a run
at the same time, each process searches again after the creation and after all content
is logged. All such processes then choose the same primary run: the oldest complete run,
otherwise the oldest run.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import InvalidConfig, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import (
    is_unity_catalog,
    mlflow_addresses,
    no_request_timeout,
    registry_client,
    registry_errors,
    store_failure,
)
from mlflow_deploy_plugin.core.settings import workspace_query

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models.model import ModelInfo

    from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel

    LogContent = Callable[[MlflowClient, str, int], None]

_PROJECT_RUN = "MLFLOW_RUN_ID"  # MLflow sets this variable for the process of a project.
_MAX_METRICS = 1000  # MLflow's limit of metrics per call.
SUPERSEDED = "onnxserve.superseded_by"
"""The tag of a superseded run, with the id of the primary run."""
_TIMES = "onnxserve.reported"
"""The tag of a run with the number of starts of the run."""
EVALUATED_TAG = "onnxserve.evaluated"
"""The tag of a run with the evaluations of a logged model that has no run. The value is
the id of the model.
"""
_MAX_RUNS = 50
_MAX_ATTEMPTS = 5
_OF_LOGGED_MODELS = ("flavor_name", "model_id", "model_type", "params", "step")


@dataclass(frozen=True)
class LoggedRun:
    """A run in MLflow. `url` is empty if the tracking server has no web pages (a
    database URI).
    """

    run_id: str
    experiment: str
    url: str

    def page_of(self, file: str) -> str:
        """Return the address of a file's page in MLflow, or the path of the artifact if
        there is no page.
        """
        page, mark, workspace = self.url.partition("?")
        if page:
            return f"{page}/artifacts/{file}{mark}{workspace}"
        return f"{self.run_id}/{file}"


def log_run(
    what: str,
    name: str,
    tags: Mapping[str, str],
    experiment_id: "Callable[[MlflowClient], str]",
    log_content: "Callable[[MlflowClient, str], None]",
) -> LoggedRun:
    """Log to the run of the MLflow project that started this process (`mlflow run . -e
    …`), or to a new run.

    `experiment_id` is called only for a new run. A new run ends as FAILED if
    `log_content` (client, run id) fails.
    """
    client = registry_client()
    with registry_errors(what), no_request_timeout:
        if project_run := project_run_id():
            tag_run(client, project_run, tags)
            log_content(client, project_run)
            return logged_run(client, project_run)
        run = client.create_run(experiment_id(client), run_name=name, tags=dict(tags))
        run_id = str(run.info.run_id)
        try:
            log_content(client, run_id)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
        return logged_run(client, run_id)


@dataclass(frozen=True)
class ModelRun:
    """The run of a model: the run that logged the model, otherwise a run for
    evaluations in the model's experiment.

    `run_id` is empty if the run must still be created, and `model_id` is empty if no
    logged model exists.
    """

    run_id: str
    experiment_id: str
    model_id: str

    def log(
        self, folder: Path, under: str, figures: Iterable[tuple[str, float, int]] = ()
    ) -> LoggedRun:
        """Log the files of a folder as artifacts below `under`, and metrics (name,
        value, step).
        """
        client = registry_client()
        run_id = self.run_id
        with registry_errors(f"run {run_id}"), no_request_timeout:
            if not run_id:
                tags = {EVALUATED_TAG: self.model_id}
                run = client.create_run(self.experiment_id, run_name="evaluation", tags=tags)
                run_id = run.info.run_id
                client.set_terminated(run_id, "FINISHED")
            client.log_artifacts(run_id, str(folder), under)
            by_step: dict[int, list[tuple[str, float]]] = {}
            for name, value, step in figures:
                by_step.setdefault(step, []).append((name, value))
            for step, values in by_step.items():
                log_metrics(client, run_id, self.model_id, values, step=step)
            return logged_run(client, run_id)


def run_of_model(model: "ResolvedModel", run_id: str, model_id: str) -> ModelRun:
    """Return the run of a model. Raises InvalidConfig if the model was never logged,
    NotFound if the run is missing.
    """
    run_id = model.aspects.get("run_id") or run_id
    model_id = model.aspects.get("model_id") or model_id
    if not run_id and not model_id:
        raise InvalidConfig(
            f"{model.model_uri} was never logged to MLflow, so it has no run to log to"
        )
    client = registry_client()
    if run_id:
        with registry_errors(f"run {run_id}"):
            return ModelRun(run_id, str(client.get_run(run_id).info.experiment_id), model_id)
    with registry_errors(f"logged model {model_id}"):
        logged_model = client.get_logged_model(model_id)
        # Use the id that MLflow returned, because over REST the id `m-1?` in a file
        # would select m-1.
        model_id = str(logged_model.model_id)
        experiment_id = str(logged_model.experiment_id)
        runs = client.search_runs(
            [experiment_id], f"tags.`{EVALUATED_TAG}` = '{model_id}'", max_results=1
        )
    run_id = str(runs[0].info.run_id) if runs else ""
    return ModelRun(run_id, experiment_id, model_id)


def has_logged_models(client: "MlflowClient") -> bool:
    """Return False if the tracking server is older than MLflow 3, where models are only
    artifacts of runs. Raises RegistryUnavailable if the server does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_logged_model("m-0")
    except MlflowException as error:
        if error.error_code == "INTERNAL_ERROR":  # The server does not answer.
            raise store_failure("the model", "", error) from None
        return bool(error.error_code != "ENDPOINT_NOT_FOUND")
    return True


def log_flavor(
    flavor: object,
    name: str | None = None,
    *,
    run_id: str | None = None,
    registered_model_name: str | None = None,
    tags: Mapping[str, object] | None = None,
    **options: object,
) -> "ModelInfo":
    """Log a model with the arguments of `mlflow.models.Model.log`, and register the
    model if a name is set.

    With a server older than MLflow 3, the model becomes an artifact of `run_id` or a
    new run. A suffix is added to the path `name` if the run already has files there.
    Options for logged models are ignored.
    """
    import mlflow
    from mlflow.models.model import Model

    client = registry_client()
    path = name or "model"
    if options.get("model_id") or has_logged_models(client):
        is_registered_later = bool(registered_model_name) and is_unity_catalog()
        options |= {
            "name": name,
            "run_id": run_id,
            "registered_model_name": None if is_registered_later else registered_model_name,
            "tags": tags,
        }
        info = Model.log(artifact_path=None, flavor=flavor, **options)
        if is_registered_later:
            # Few registries need this module.
            from mlflow_deploy_plugin.core.registry.unity_catalog import stored_tags

            # `Model.log` would register the keys of the logged model, which Unity
            # Catalog refuses.
            info.registered_model_version = mlflow.register_model(
                info.model_uri, registered_model_name, tags=stored_tags(tags or {})
            ).version
        return info
    options = {key: value for key, value in options.items() if key not in _OF_LOGGED_MODELS}
    with ExitStack() as stack:
        if not run_id:
            run = mlflow.active_run() or stack.enter_context(mlflow.start_run())
            run_id = run.info.run_id
        if path.partition("/")[0] in {file.path for file in client.list_artifacts(run_id)}:
            path += f"-{uuid4().hex[:8]}"
        info = mlflow_private._log_v2(
            path, flavor, registered_model_name=registered_model_name, run_id=run_id, **options
        )
    if registered_model_name:
        for key, value in (tags or {}).items():
            client.set_model_version_tag(
                registered_model_name, str(info.registered_model_version), key, value
            )
    return info


def logged_run(client: "MlflowClient", run_id: str) -> LoggedRun:
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    page = mlflow_page(f"experiments/{experiment.experiment_id}/runs/{run_id}")
    return LoggedRun(run_id, experiment.name, page)


def mlflow_page(route: str) -> str:
    """Return the URL of a page of MLflow's UI, such as `models/X/versions/3`; empty if
    the server has no pages.
    """
    from mlflow.tracking import get_tracking_uri

    uri = str(get_tracking_uri()).rstrip("/")
    if uri.startswith(("http://", "https://")):
        return f"{uri}/#/{route}{workspace_query()}"
    return ""


def experiment_name(name: str) -> str:
    """Return the name of an experiment in MLflow. Databricks needs the path of a file
    in the workspace.
    """
    if name.startswith("/") or not mlflow_addresses()[0].startswith("databricks"):
        return name
    return f"/Shared/{name.replace('/', '-')}"


def get_or_create_experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of the experiment, which is created or restored if necessary."""
    from mlflow.exceptions import MlflowException

    name = experiment_name(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # Another process created the experiment.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def log_metrics(
    client: "MlflowClient",
    run_id: str,
    model_id: str,
    figures: Iterable[tuple[str, float]],
    at_ms: int | None = None,
    step: int = 0,
) -> None:
    """Log names and values as metrics of the run, and of the model if this tracking
    server has the model.

    `at_ms` is in milliseconds since 1970. For equal names and times, MLflow shows the
    highest `step`.
    """
    from mlflow.entities import LoggedModelInput, Metric
    from mlflow.exceptions import MlflowException
    from mlflow.utils.time import get_current_time_millis

    logged_id = None
    if model_id:
        with suppress(MlflowException):  # A model may come from another tracking server.
            logged_id = str(client.get_logged_model(model_id).model_id)
    if at_ms is None:
        at_ms = get_current_time_millis()
    metrics = [Metric(key, value, at_ms, step, model_id=logged_id) for key, value in figures]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
    if logged_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(logged_id)])


def tag_run(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run. MLflow 3.17's `set_tag` would fail if two processes set the
    same tag at the same time.
    """
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def project_run_id() -> str | None:
    return os.environ.get(_PROJECT_RUN) or None


@dataclass(frozen=True)
class IdempotentRun:
    """The run of one subject, which the tags `identity` (without quotes) identify. The
    tag `done` is set last.
    """

    what: str
    experiment: str
    identity: Mapping[str, str]
    done: tuple[str, str]

    def log(self, name: str, tags: Mapping[str, str], log_content: "LogContent") -> LoggedRun:
        """Log to the run of the MLflow project of this process, to the existing run, or
        to a new run.

        `log_content` receives the client, the run id and the number of earlier starts
        of the run. If MLflow does not answer (RegistryUnavailable), the next call
        continues the run.
        """
        # Only the command may print to stdout.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow.exceptions import MlflowException

        client = registry_client()
        with registry_errors(self.what), no_request_timeout:
            for _ in range(_MAX_ATTEMPTS):
                run_tags = {**tags, **self.identity}
                run, is_new = self._find_or_create(client, name, run_tags)
                # A process deletes only a run that it created and that is not the
                # primary.
                if is_new and self._primary(client, run) != run.info.run_id:
                    client.delete_run(run.info.run_id)
                    run, is_new = self._find_or_create(client, name, run_tags)
                run_id = str(run.info.run_id)
                try:
                    before = run.data.tags.get(_TIMES, "0")
                    times = int(before) if before.isdigit() else 0
                    tag_run(client, run_id, {**run_tags, _TIMES: str(times + 1)})
                    log_content(client, run_id, times)
                    primary = self._primary(client, run)
                    if primary == run_id:
                        self._finish(client, run)
                    elif is_new:
                        client.delete_run(run_id)
                    else:
                        tag_run(client, run_id, {SUPERSEDED: primary})
                except Exception as error:
                    with suppress(MlflowException):
                        if isinstance(error, MlflowException) and _is_deleted(client, run_id):
                            continue  # Another process has deleted the run.
                        if not project_run_id():
                            client.set_terminated(run_id, "FAILED")
                    raise
                return logged_run(client, primary)
            raise RegistryUnavailable(f"{self.what}: other processes keep deleting its run")

    def _find_or_create(
        self, client: "MlflowClient", name: str, tags: Mapping[str, str]
    ) -> "tuple[Run, bool]":
        """Return the run of the MLflow project, the primary run of this subject or a
        new run, and True if the run is new.
        """
        if (run_id := project_run_id()) is not None:
            return client.get_run(run_id), False
        experiment_id = get_or_create_experiment(client, self.experiment)
        if runs := self._runs(client, experiment_id):
            return runs[0], False
        return client.create_run(experiment_id, run_name=name, tags=dict(tags)), True

    def _primary(self, client: "MlflowClient", run: "Run") -> str:
        """Return the id of the primary run, by default of `run`."""
        runs = self._runs(client, run.info.experiment_id)
        return project_run_id() or str((runs or [run])[0].info.run_id)

    def _runs(self, client: "MlflowClient", experiment_id: str) -> "list[Run]":
        """Return the runs of this subject that are not superseded. The first run is the
        primary run.
        """
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self.identity.items())
        results = client.search_runs([experiment_id], query, max_results=_MAX_RUNS)
        runs = [run for run in results if SUPERSEDED not in run.data.tags]
        return sorted(
            runs,
            key=lambda run: (
                self.done[0] not in run.data.tags,
                run.info.start_time,
                run.info.run_id,
            ),
        )

    def _finish(self, client: "MlflowClient", run: "Run") -> None:
        """Mark the run as done and the other runs of this name as superseded."""
        from mlflow.exceptions import MlflowException

        run_id = str(run.info.run_id)
        tag_run(client, run_id, dict([self.done]))
        for other in self._runs(client, run.info.experiment_id):
            other_id = other.info.run_id
            if other_id == run_id:
                continue
            try:
                tag_run(client, other_id, {SUPERSEDED: run_id})
            except MlflowException:
                # The creator may have deleted the run since the search.
                if not _is_deleted(client, other_id):
                    raise
            if self.done[0] in other.data.tags:
                with suppress(MlflowException):  # Another process may have deleted the tag.
                    client.delete_tag(other_id, self.done[0])
        if not project_run_id():
            client.set_terminated(run_id, "FINISHED")


def _is_deleted(client: "MlflowClient", run_id: str) -> bool:
    return str(client.get_run(run_id).info.lifecycle_stage) == "deleted"
