"""`python -m mlflow_deploy_plugin.ui.actions FILE`: do what a button of the console asks, and write down how it went.

It calls what the command line calls; the audit trail has the person who pressed the button as the actor.
"""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.settings import Settings, load_settings
from mlflow_deploy_plugin.store import Store, open_store
from mlflow_deploy_plugin.ui.jobs import Job, read_job, write_job

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments

_TIMEOUT_SECONDS = 10
_MLFLOW_SECONDS = "30"
"""The timeout of a request to MLflow; each checks the password, which takes time on a loaded server."""


def main(path: Path) -> int:
    """Return the exit status, 0 if the action was done."""
    job = read_job(path)
    if job is None:
        return 2
    job = replace(job, pid=os.getpid())
    write_job(path, job)
    try:
        os.environ["MLFLOW_TRACKING_URI"] = _reachable(job.servers)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _MLFLOW_SECONDS)
        settings = load_settings()
        with closing(open_store(settings.store_url)) as store:
            message = _ACTIONS[job.arguments["action"]](job, store, settings)
    except OnnxserveError as error:
        write_job(path, replace(job, state="failed", message=error.message))
        return 1
    except Exception as error:
        from mlflow.exceptions import MlflowException

        # another exception goes to the log with its traceback, and the server shows the last line
        if not isinstance(error, MlflowException):
            raise
        write_job(path, replace(job, state="failed", message=" ".join(str(error).split())))
        return 1
    write_job(path, replace(job, state="done", message=message))
    return 0


def _reachable(servers: tuple[str, ...]) -> str:
    """Return the first address at which this MLflow takes our requests; it may refuse a host that it does not know."""
    for server in servers:
        try:
            if requests.get(f"{server}/", timeout=_TIMEOUT_SECONDS).status_code != 403:
                return server
        except requests.RequestException:
            continue
    raise RegistryUnavailable(
        f"this MLflow server reaches itself neither at {' nor at '.join(servers)}: "
        "start it with ONNXSERVE_MLFLOW_URL set to its own address"
    )


def _traffic(job: Job, store: Store, settings: Settings) -> str:
    endpoint, weights = job.arguments["endpoint"], job.arguments["weights"]
    _deployments_of_running(endpoint, store, settings).set_traffic(
        endpoint, weights, why=job.arguments["why"], actor=job.actor
    )
    return f"{endpoint} is answered by {', '.join(f'{name} {weight}' for name, weight in weights.items())}."


def _rollback(job: Job, store: Store, settings: Settings) -> str:
    from mlflow_deploy_plugin.controller import rollback

    endpoint = job.arguments["endpoint"]
    deployments = _deployments_of_running(endpoint, store, settings)
    done = rollback(endpoint, job.arguments["why"], job.actor, deployments=deployments)
    return f"{done['model']} {done['from']} → {done['to']} in {done['seconds']} s ({done['source']})."


def _promote(job: Job, store: Store, settings: Settings) -> str:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.gate import Permissions, promote

    model, version, to = job.arguments["model"], job.arguments["version"], job.arguments["to"]
    allowed = Permissions(code=False, files=not job.has_account)
    moved = promote(
        model, version, to, why=job.arguments["why"], actor=job.actor, store=store, progress=print, allowed=allowed
    )
    if not moved.is_moved:
        return f"Version {moved.version} {moved.location_text} already; nothing was done."
    Deployments(store, settings, print).poll_registry(model)
    before = f", where version {moved.before} was" if moved.before else ""
    return f"Version {moved.version} {moved.location_text}{before}; gate {moved.gate}: {moved.reason}."


def _gate(job: Job, store: Store, settings: Settings) -> str:
    from mlflow_deploy_plugin.gate import Permissions, run_gate, verdict_of_served

    model, version = job.arguments["model"], job.arguments["version"]
    if (known := verdict_of_served(model, version)) is not None:
        return f"{known}."
    allowed = Permissions(code=False, files=not job.has_account)
    gated = run_gate(model, version, actor=job.actor, store=store, progress=print, allowed=allowed)
    return f"The gate says {gated.verdict.state}: {gated.verdict.reason}."


def _deployments_of_running(endpoint: str, store: Store, settings: Settings) -> "Deployments":
    """Return the deployments; raise InvalidConfig if the server of the endpoint does not run."""
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.ui.blockers import server_blocker

    deployments = Deployments(store, settings, print)
    if blocker := server_blocker(deployments.get_endpoint(endpoint)):
        raise InvalidConfig(blocker)
    return deployments


_ACTIONS: dict[str, Callable[[Job, Store, Settings], str]] = {
    "traffic": _traffic,
    "rollback": _rollback,
    "promote": _promote,
    "gate": _gate,
}


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    sys.exit(main(Path(sys.argv[1])))
