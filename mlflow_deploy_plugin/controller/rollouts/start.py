"""Starts a rollout: makes its plan from what is served now, and writes it down."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlflow_deploy_plugin.controller.rollouts.plan import (
    DEFAULT_CRITERIA,
    MIN_REQUESTS,
    RolloutPlan,
    parse_criteria,
    parse_steps,
)
from mlflow_deploy_plugin.controller.rollouts.state_machine import started_event
from mlflow_deploy_plugin.controller.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotReady
from mlflow_deploy_plugin.registry import ModelURI, ResolvedModel, parse_model_uri, read_gate_status, resolve
from mlflow_deploy_plugin.spec import EndpointSpec, duration_seconds
from mlflow_deploy_plugin.store import Rollout, current_actor, utc_now

CANDIDATE = "candidate"
DEFAULT_STEPS = "1,10,50,100"
DEFAULT_EVERY = "5m"


@dataclass(frozen=True)
class RolloutRequest:
    """A rollout as a person asks for it.

    Attributes:
        to: a model URI, or a version of the model that is served now.
    """

    to: str
    steps: str = DEFAULT_STEPS
    every: str = DEFAULT_EVERY
    abort_on: str = DEFAULT_CRITERIA
    min_requests: int = MIN_REQUESTS
    why: str = ""


def start_rollout(
    deployments: Deployments,
    endpoint: str,
    request: RolloutRequest,
    actor: str | None = None,
    before_it_starts: Callable[[], None] = lambda: None,
) -> Rollout:
    """Write the rollout down; a controller does the rest.

    Args:
        before_it_starts: is called when the request is found valid; if it raises, nothing is started.

    Raises:
        NotFound: there is no such endpoint or version.
        InvalidConfig: the request is not possible; the message says what is.
        NotReady: the endpoint's server does not answer.
        AlreadyExists: the endpoint has a live rollout.
    """
    observed = deployments.get_endpoint(endpoint)
    spec, snapshot = observed.endpoint.spec, take_snapshot(observed)
    main = main_variant(spec)
    if snapshot.state != "running" or (before := snapshot.versions.get(main)) is None:
        raise NotReady(
            f"{endpoint}: {snapshot.state}; {snapshot.reason or 'its workers answer with different versions'}"
        )
    reference = parse_model_uri(spec.variants[main].model)
    resolved = _resolve(request.to, reference)
    _check(spec, reference, resolved, before)
    criteria = parse_criteria(request.abort_on)
    try:
        seconds = float(duration_seconds(request.every))
    except (ValueError, KeyError, IndexError):
        seconds = 0.0
    if seconds < 1:
        raise InvalidConfig(f"--every {request.every}: a duration like 30s, 5m or 1h is expected")
    if request.min_requests < 1:
        raise InvalidConfig("--min-requests: at least 1 is expected")
    candidate = _free_name(CANDIDATE, spec.variants)
    is_compared = any(one.kind == "disagreement" for one in criteria)
    plan = RolloutPlan(
        endpoint=endpoint,
        main=main,
        candidate=candidate,
        shadow=_free_name(f"{candidate}-shadow", spec.variants) if is_compared else "",
        to_uri=f"models:/{resolved.name}/{resolved.version}",
        model=resolved.name,
        version=resolved.version,
        before_uri=spec.variants[main].model,
        before_version=before,
        kind=reference.kind if reference.kind in ("stage", "alias", "tag") else "pinned",
        selector=reference.selector,
        steps=parse_steps(request.steps),
        every=seconds,
        abort_on=",".join(one.text for one in criteria),
        min_requests=request.min_requests,
        actor=actor or current_actor(),
        why=request.why,
    )
    before_it_starts()
    return deployments.store.add_rollout(endpoint, plan.to_json(), "starting", started_event(plan, utc_now()))


def _resolve(to: str, main: ModelURI) -> ResolvedModel:
    """Return the version that is asked for; a number is a version of the model that is served."""
    if not to.isdecimal():
        return resolve(to)
    if main.kind in ("path", "remote", "run", "logged_model"):
        raise InvalidConfig(f"--to {to}: what is served is no registered model; say models:/NAME/{to}")
    return resolve(f"models:/{main.name}/{to}")


def _check(spec: EndpointSpec, main: ModelURI, to: ResolvedModel, before: str) -> None:
    if not to.version.isdigit():
        raise InvalidConfig(f"{to.model_uri} is no version of a registered model; models:/NAME/7 is expected")
    if main.followed and main.name != to.name:
        raise InvalidConfig(
            f"endpoint {spec.name!r} follows model {main.name}, which {to.name} version {to.version} cannot become a "
            "version of"
        )
    is_same_model = main.name == to.name
    if is_same_model and to.version == before:
        raise InvalidConfig(f"endpoint {spec.name!r} serves {to.name} version {before} already")
    if spec.require and not (judged := read_gate_status(to.name, to.version)).passed:
        raise InvalidConfig(
            f"endpoint {spec.name!r} requires {spec.require}, and {to.name} version {to.version} does not have it: "
            f"{judged.reason}"
        )


def _free_name(wanted: str, taken: Iterable[str]) -> str:
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, 100))]
    return next(name for name in names if name not in set(taken))
