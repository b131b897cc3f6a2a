"""One run in MLflow for one thing, however often it is reported and by how many at the same time.

MLflow has no unique keys, so a run carries what it is the run of as tags, and whoever reports looks for it first. Two
that look at the same time and find nothing make two; both look again, when their run is made and when it is filled, and
agree on which one stands, without a word between them: one that is done before one that is not, then the older one.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.errors import RegistryUnavailable
from mlflow_deploy_plugin.registry.connection import no_request_timeout, registry_client, registry_errors
from mlflow_deploy_plugin.registry.runs import (
    LoggedRun,
    get_or_create_experiment,
    logged_run,
    project_run_id,
    tag_run,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SUPERSEDED = "onnxserve.superseded_by"
"""Of a run that does not count: the one that stands for it."""
_TIMES = "onnxserve.reported"
"""How often the run was begun."""
_MOST = 50
_MOST_TURNS = 5


class IdempotentRun:
    """The run for one thing.

    Args:
        what: names the run in the message of an error.
        experiment: name of the experiment, which is made where needed.
        identity: tags that say what it is the run of; their values hold no quotes.
        done: the tag that a run has when all of it is logged, and its value; it is set last.
        told_apart_by: tags with which a run of the same identity is one for another thing where it has another value; a
            run without them, of an older onnxserve, is one for this.
    """

    def __init__(
        self,
        what: str,
        experiment: str,
        identity: Mapping[str, str],
        done: tuple[str, str],
        told_apart_by: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._what = what
        self._experiment = experiment
        self._identity = identity
        self._done = done
        self._told_apart_by = told_apart_by

    def log(
        self,
        name: str,
        tags: Mapping[str, str],
        log_content: "Callable[[MlflowClient, str, int], None]",
    ) -> LoggedRun:
        """Logs to the run of the MLflow project that this process belongs to, else to the one that is there, else to a
        new one.

        Args:
            log_content: is given the run's id and how often it was begun before.

        Raises:
            RegistryUnavailable: MLflow does not answer. What was begun is gone on with by the next call.
        """
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a command's output is its own
        client = registry_client()
        with registry_errors(self._what), no_request_timeout():
            for _ in range(_MOST_TURNS):
                logged = self._try(client, name, tags, log_content)
                if logged is not None:
                    break
            else:
                raise RegistryUnavailable(f"{self._what}: others delete its run again and again")
            return logged_run(client, logged)

    def _try(
        self,
        client: "MlflowClient",
        name: str,
        tags: Mapping[str, str],
        log_content: "Callable[[MlflowClient, str, int], None]",
    ) -> str | None:
        """The run that stands, with all that is to be logged; None where it was deleted meanwhile by who made it, for
        which another stands."""
        from mlflow.exceptions import MlflowException

        run_id, is_new = self._begin(client, name, tags)
        if is_new and self._standing(client, run_id) != run_id:
            client.delete_run(run_id)
            run_id, is_new = self._begin(client, name, tags)
        try:
            log_content(client, run_id, self._count(client, run_id))
            standing = self._standing(client, run_id)
            if standing == run_id:
                self._end(client, run_id)
            elif is_new:
                client.delete_run(run_id)
            else:
                tag_run(client, run_id, {SUPERSEDED: standing})
            return standing
        except Exception as error:
            with suppress(MlflowException):
                if isinstance(error, MlflowException) and _is_deleted(client, run_id):
                    return None
                if not project_run_id():
                    client.set_terminated(run_id, "FAILED")
            raise

    def _begin(self, client: "MlflowClient", name: str, tags: Mapping[str, str]) -> tuple[str, bool]:
        """The run to log to, with its tags, and whether it was made here."""
        from mlflow.exceptions import MlflowException

        said = {**tags, **self._identity, **self._told_apart_by}
        found = project_run_id()
        if found is None:
            experiment_id = get_or_create_experiment(client, self._experiment)
            found = next((str(run.info.run_id) for run in self._runs(client, experiment_id)), None)
            if found is None:
                return str(client.create_run(experiment_id, run_name=name, tags=said).info.run_id), True
        try:
            tag_run(client, found, said)
        except MlflowException:
            if _is_deleted(client, found):  # since it was found
                return self._begin(client, name, tags)
            raise
        return found, False

    def _count(self, client: "MlflowClient", run_id: str) -> int:
        """How often the run was begun before; counts this time."""
        before = client.get_run(run_id).data.tags.get(_TIMES, "0")
        count = int(before) if before.isdigit() else 0
        tag_run(client, run_id, {_TIMES: str(count + 1)})
        return count

    def _standing(self, client: "MlflowClient", run_id: str) -> str:
        """Which of all runs for this stands."""
        experiment_id = client.get_run(run_id).info.experiment_id
        return project_run_id() or str(next((run.info.run_id for run in self._runs(client, experiment_id)), run_id))

    def _runs(self, client: "MlflowClient", experiment_id: str) -> "list[Run]":
        """Those for this that count, the one that stands first."""
        asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._identity.items())
        found = client.search_runs([experiment_id], asked, max_results=_MOST)
        counting = [run for run in found if SUPERSEDED not in run.data.tags and self._is_for_this(run.data.tags)]
        return sorted(
            counting, key=lambda run: (self._done[0] not in run.data.tags, run.info.start_time, run.info.run_id)
        )

    def _is_for_this(self, tags: Mapping[str, str]) -> bool:
        return all(tags.get(key, value) == value for key, value in self._told_apart_by.items())

    def _end(self, client: "MlflowClient", run_id: str) -> None:
        """Says that the run is done, and that the others do not count."""
        from mlflow.exceptions import MlflowException

        tag_run(client, run_id, dict([self._done]))
        experiment_id = client.get_run(run_id).info.experiment_id
        for other in self._runs(client, experiment_id):
            if other.info.run_id == run_id:
                continue
            try:
                tag_run(client, other.info.run_id, {SUPERSEDED: run_id})
            except MlflowException:
                if not _is_deleted(client, other.info.run_id):  # by who made it, since it was found
                    raise
            if self._done[0] in other.data.tags:
                with suppress(MlflowException):  # another took it away at the same time
                    client.delete_tag(other.info.run_id, self._done[0])
        if not project_run_id():
            client.set_terminated(run_id, "FINISHED")


def _is_deleted(client: "MlflowClient", run_id: str) -> bool:
    return str(client.get_run(run_id).info.lifecycle_stage) == "deleted"
