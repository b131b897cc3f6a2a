"""The actions of the console: their blockers, their forms, and the process that
executes them.

`python -m mlflow_deploy_plugin.ui.actions FILE` executes the action of a button with
the functions of the command line and stores the outcome. The audit trail records the
user who pressed the button.

A blocker is the reason why an action would be refused now, or an empty text. With a
blocker, the page disables the button, and the action is refused. Reasons that need an
attempt, such as the gate's verdict, are not blockers.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import requests

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.core.registry import transitions
from mlflow_deploy_plugin.core.registry.connection import (
    own_process,
    redact_addresses,
    send_headers,
)
from mlflow_deploy_plugin.core.registry.model_uri import registered_model_names
from mlflow_deploy_plugin.core.registry.policy import GatePolicy, require_mlflow_data
from mlflow_deploy_plugin.core.registry.transitions import PreviousVersion
from mlflow_deploy_plugin.core.settings import Settings, load_settings
from mlflow_deploy_plugin.core.statedir.files import read_state, write_state
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.rollouts.rollback import rollback_target
from mlflow_deploy_plugin.ship.deployments.config import traffic_weights
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments, rollout_traffic_refusal
from mlflow_deploy_plugin.ship.deployments.server_metrics import MetricsByServer
from mlflow_deploy_plugin.ui.jobs import Job
from mlflow_deploy_plugin.ui.logins.login import HEADERS_VARIABLE

if TYPE_CHECKING:
    from mlflow.store.model_registry.abstract_store import AbstractStore as Registry

_TIMEOUT_SECONDS = 10
_MLFLOW_SECONDS = "30"
"""The timeout of a request to MLflow. Each request includes a password check, which is
slow on a loaded server.
"""
_MAX_WHY_CHARACTERS = 500
_WEIGHT = "weight:"
_MAX_WEIGHT = 100
DECISIONS = ("approve", "decline")
"""The actions that MLflow's server executes itself, because it authenticates the person
who decides.
"""


def server_blocker(observed: ObservedEndpoint) -> str:
    """Return the blocker of a stopped endpoint, because a server started here would
    keep the caller's credentials.
    """
    if observed.observation.state in ("running", "starting"):
        return ""
    name = observed.endpoint.name
    return f"the server of {name} does not run: start it with `onnxserve start {name}`"


def traffic_blocker(store: Store, observed: ObservedEndpoint) -> str:
    refused = rollout_traffic_refusal(store, observed.endpoint.spec.name)
    reason = refused.reason if refused else ""
    return server_blocker(observed) or reason


def rollback_target_of(
    store: Store,
    observed: ObservedEndpoint,
    registry: "Registry",
    metrics: MetricsByServer = MappingProxyType({}),
) -> PreviousVersion:
    """Return the rollback target of the endpoint, from the audit trail, the counters
    `metrics` of its servers, and MLflow's registry store `registry`.

    Raises NotFound if no earlier version or model is known, InvalidConfig if the
    endpoint cannot be rolled back now, and RegistryUnavailable.
    """
    try:
        target = rollback_target(store, observed, registry, metrics)
    except (InvalidConfig, NotFound) as error:
        raise type(error)(redact_addresses(error.message)) from None
    if blocker := server_blocker(observed):
        raise InvalidConfig(blocker)
    return target


def require_shown_target(
    store: Store,
    observed: ObservedEndpoint,
    offered: str,
    metrics: MetricsByServer,
) -> None:
    """Raise InvalidConfig if the rollback target has changed since the page was loaded.

    Another user may have rolled back or promoted, and two users who press the button
    intend only one step back.
    """
    try:
        version = rollback_target(store, observed, None, metrics).version
        now = f"it would be rolled back to {version}"
    except (InvalidConfig, NotFound) as error:
        version = ""
        now = error.message
    if version != offered:
        name = observed.endpoint.name
        raise InvalidConfig(
            f"{name} has changed since the page showed a rollback to {offered}: now, {now}"
        )


def gate_blocker(policy: GatePolicy, has_account: bool) -> str:
    if has_account:
        return refusal_of(partial(require_mlflow_data, policy))
    return ""


def refusal_of(check: Callable[[], object]) -> str:
    """Return the message of the error that `check` raises; empty without an error."""
    try:
        check()
    except OnnxserveError as error:
        return error.message
    return ""


ParsedForm = tuple[Json, str, list[str]]
"""The validated arguments of a form's action, its description, and the models that the
caller must edit.
"""


def parse_form(form: Mapping[str, str], store: Store) -> ParsedForm:
    """Return the action of a form.

    Raises InvalidConfig or NotFound with a message for the page.
    """
    action = form.get("action", "")
    arguments: Json
    if action in ("traffic", "rollback"):
        endpoint = store.endpoint(form.get("endpoint", ""))
        if endpoint is None:
            raise no_endpoint(form.get("endpoint", ""))
        arguments = {"endpoint": endpoint.name, "to": form.get("to", "")}
        description = f"roll {endpoint.name} back"
        if action == "traffic":
            weights = {}
            for name in traffic_weights(endpoint.spec):
                weight = form.get(f"{_WEIGHT}{name}", "").strip()
                if not weight.isdecimal() or int(weight) > _MAX_WEIGHT:
                    raise InvalidConfig(
                        f"the weight of {name} is {weight or 'empty'!r}; a whole number from 0 to "
                        f"{_MAX_WEIGHT} is expected"
                    )
                weights[name] = int(weight)
            if not any(weights.values()):
                raise InvalidConfig(
                    f"{endpoint.name} needs a variant with traffic: set at least one weight above 0"
                )
            arguments["weights"] = weights
            description = f"change the traffic of {endpoint.name} to {_weights_text(weights)}"
        models = registered_model_names(endpoint.spec)
    elif action in ("promote", "gate", "request", *DECISIONS):
        model = form.get("model", "")
        version = form.get("version", "")
        if not model or not version.isdecimal():
            raise InvalidConfig("a registered model and the number of its version are expected")
        arguments = {
            "model": model,
            "version": version,
            "to": "",
            "report": form.get("report", ""),
        }
        description = f"run the gate for version {version} of {model}"
        models = [model]
        if action != "gate":  # Only the gate needs no stage or alias.
            arguments["to"] = str(transitions.parse_stage_or_alias(form.get("to", "")))
            what = "promote" if action == "promote" else f"{action} the promotion of"
            description = f"{what} version {version} of {model} to {arguments['to']}"
    else:
        raise InvalidConfig(
            f"there is no action {action!r}; the actions are {', '.join((*_ACTIONS, *DECISIONS))}"
        )
    why = one_line(form.get("why", ""))
    if len(why) > _MAX_WHY_CHARACTERS:
        raise InvalidConfig(
            f"the reason has {len(why)} characters; at most {_MAX_WHY_CHARACTERS} are allowed"
        )
    return {"action": action, "why": why, **arguments}, description, models


def _weights_text(weights: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {weight}" for name, weight in weights.items())


def no_endpoint(name: str) -> NotFound:
    return NotFound(f"there is no endpoint {name!r}")


def main(path: Path) -> int:
    """Execute the job in a file, and write its outcome to the file.

    Return the exit status: 0 if it is done, 1 if onnxserve or MLflow refused it, 2
    without a readable job. Any other exception is raised.
    """
    job = read_state(path, Job)
    if job is None:
        return 2
    limit_growth()  # The gate opens models.
    job = job.model_copy(update={"pid": os.getpid()})
    write_state(path, job)
    own_process()
    # A caller without a password or a token has headers, such as session cookies.
    headers: dict[str, str] = json.loads(os.environ.pop(HEADERS_VARIABLE, "{}"))
    send_headers(lambda: headers)
    try:
        # Use the first URL at which this MLflow accepts our requests, because MLflow
        # may refuse unknown host names.
        from mlflow.utils.credentials import get_default_host_creds

        remedy = "ONNXSERVE_MLFLOW_URL set to the server's address"
        for server in job.servers:
            try:
                # Verify certificates like MLflow's client.
                trusted = get_default_host_creds(server).verify
                answer = requests.get(f"{server}/", timeout=_TIMEOUT_SECONDS, verify=trusted)
                if answer.status_code != 403:
                    break
            except requests.exceptions.SSLError:
                remedy = "MLFLOW_TRACKING_SERVER_CERT_PATH set to the CA file of its certificate"
            except requests.RequestException:
                continue
        else:
            at = " at " if job.servers else ""
            urls = " or at ".join(job.servers)
            raise RegistryUnavailable(
                f"this MLflow server cannot send requests to itself{at}{urls}: start it with "
                f"{remedy}"
            )
        os.environ["MLFLOW_TRACKING_URI"] = server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _MLFLOW_SECONDS)
        settings = load_settings()
        with closing(open_store(settings.store_url)) as store:
            message = _ACTIONS[job.arguments["action"]](job, store, settings)
    except Exception as error:
        from mlflow.exceptions import MlflowException

        # For an exception of another type, the traceback is logged, and the console
        # shows the last line of the log.
        if not isinstance(error, OnnxserveError | MlflowException):
            raise
        write_state(path, job.ended("failed", one_line(error)))
        return 1
    write_state(path, job.ended("done", message))
    return 0


def _change_endpoint(job: Job, store: Store, settings: Settings) -> str:
    """Change the traffic of an endpoint, or roll it back. Raises InvalidConfig if its
    server does not run.
    """
    endpoint = job.arguments["endpoint"]
    deployments = Deployments(store, settings, print)
    observed = deployments.get_endpoint(endpoint)
    if blocker := server_blocker(observed):
        raise InvalidConfig(blocker)
    if job.arguments["action"] == "rollback":
        from mlflow_deploy_plugin.promote.rollouts.rollback import rollback

        if to := job.arguments["to"]:
            metrics = deployments.server_metrics(observed)
            require_shown_target(store, observed, to, metrics)
        done = rollback(deployments, endpoint, job.arguments["why"], job.actor, to or None)
        move = f"{done['model']} {done['from']} → {done['to']}"
        return f"{move} in {done['seconds']} s ({done['source']})."
    weights = job.arguments["weights"]
    deployments.set_traffic(endpoint, weights, why=job.arguments["why"], actor=job.actor)
    return f"The traffic of {endpoint} is {_weights_text(weights)}."


def _options(job: Job, store: Store) -> Json:
    """Return the options of a gate run for the caller of the job."""
    from mlflow_deploy_plugin.core.registry.policy import Permissions

    allowed = Permissions(code=False, files=not job.has_account)
    return {"actor": job.actor, "store": store, "progress": print, "allowed": allowed}


def _gate_version(job: Job, store: Store, _: Settings) -> str:
    """Run the gate, unless the version is served and has nothing to compare with."""
    from mlflow_deploy_plugin.promote.gate.run import run_gate, verdict_of_served

    model = job.arguments["model"]
    version = job.arguments["version"]
    served = verdict_of_served(model, version)
    if served is not None:
        return f"{served}."
    verdict = run_gate(model, version, **_options(job, store)).verdict
    return f"The verdict of the gate is {verdict.state}: {verdict.reason}."


def _promote_version(job: Job, store: Store, settings: Settings) -> str:
    """Promote a version, or run its gate and request its promotion."""
    from mlflow_deploy_plugin.promote.gate.approval_client import send_decision
    from mlflow_deploy_plugin.promote.gate.promotion import promote

    names = ("model", "version", "to", "why")
    model, version, to, why = (job.arguments[name] for name in names)
    is_request = job.arguments["action"] == "request"
    moved = promote(model, version, to, why=why, is_request=is_request, **_options(job, store))
    if is_request:
        requested = send_decision("request", model, version, to, why)
        verdict = requested.verdict or "without a report"
        reason = requested.reason or "all approvals are there"
        return f"Gate {verdict}; {reason}."
    if not moved.is_moved:
        return f"Version {moved.version} {moved.location_text} already; no change."
    Deployments(store, settings, print).poll_registry(model)
    before = f" instead of version {moved.before}" if moved.before else ""
    return (
        f"Version {moved.version} {moved.location_text}{before}; gate {moved.gate}: {moved.reason}."
    )


_ACTIONS: dict[str, Callable[[Job, Store, Settings], str]] = {
    "traffic": _change_endpoint,
    "rollback": _change_endpoint,
    "promote": _promote_version,
    "gate": _gate_version,
    "request": _promote_version,
}


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    sys.exit(main(Path(sys.argv[1])))
