"""The context of a retraining's steps: they write it down, wait, end it, and announce its end through it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from mlflow_deploy_plugin.controller.retraining.plan import (
    RetrainingState,
    RetrainPlan,
    ended_event,
    plan_of,
    retraining_summary,
)
from mlflow_deploy_plugin.controller.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.deployments import Deployments, ObservedEndpoint
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.monitoring import announce
from mlflow_deploy_plugin.registry import CANDIDATE_TAG, parse_model_uri, resolve, tag_version
from mlflow_deploy_plugin.store import AuditEvent, Retraining, Retrainings, Rollout, WaitsFor

TRAINING_FILES = ("data.parquet", "held_out.parquet")
"""The rows that a training learns, and those that its version is judged by."""

StartRollout = Callable[[RetrainPlan, str, str], Rollout]
"""Starts the rollout of a plan's version, with the reason. Raises as `rollouts.start.start_rollout`."""


@dataclass(frozen=True)
class RetrainingContext:
    """The tools of every step.

    Attributes:
        actor: stands in the audit trail for what is done.
        say: takes one line for each change.
    """

    deployments: Deployments
    actor: str
    start_rollout: StartRollout
    say: Callable[[str], None] = lambda line: None

    def now(self) -> datetime:
        """Return the time by the store's clock."""
        return self.deployments.store.now()

    def write(
        self, changed: Retraining, event: AuditEvent | None = None, waits_for: WaitsFor = ""
    ) -> Retraining | None:
        """Write it down. Return None if another process has taken it further meanwhile."""
        changed = replace(changed, waits_for=waits_for)
        written = Retrainings(self.deployments.store).update(changed, event)
        if written is not None:
            self.say(retraining_summary(written))
        return written

    def wait(self, one: Retraining, reason: str, waits_for: WaitsFor = "") -> None:
        """Write down what it waits for, once for the same reason."""
        if one.reason != reason:
            self.write(replace(one, reason=reason), waits_for=waits_for)

    def fail(self, one: Retraining, reason: str) -> None:
        """End it as failed, and announce that."""
        self._announce(one, f"retraining {one.id} of {one.model} has failed: {reason}")
        self.end(one, "failed", reason)

    def finish(self, one: Retraining, state: RetrainingState, reason: str) -> None:
        """End it without a rollout of its version; the version's tag says how it ended."""
        plan = plan_of(one)
        tag_version(plan.model, one.version, CANDIDATE_TAG, state)
        if state == "proposed":
            self._announce(one, f"{plan.model} version {one.version} is proposed: {reason}")
        self.end(one, state, reason)

    def end(self, one: Retraining, state: RetrainingState, reason: str) -> None:
        now = self.now()
        ended = replace(one, state=state, reason=reason, ended_at=now)
        written = self.write(ended, ended_event(ended, self.actor, now))
        if written is not None and state != "failed":  # of one that failed a person may want to see the rows
            for name in TRAINING_FILES:  # the log stays, and MLflow has the held-out rows
                (self.folder(one) / name).unlink(missing_ok=True)

    def folder(self, one: Retraining) -> Path:
        """Return the folder where an attempt keeps its rows and its log."""
        attempt = one.figures.get("attempt", 1)
        return self.deployments.settings.home_path / "retrainings" / f"{one.id}-{attempt}"

    def _announce(self, one: Retraining, text: str) -> None:
        """Announce it, once; before it is written down, so that it is never lost."""
        link = str(one.figures.get("gate_report") or one.cause.get("report", ""))
        is_page = link.startswith(("http://", "https://"))
        announce(self.deployments.store, one.endpoint, one.monitor, f"{one.endpoint}: {text}", link if is_page else "")


class ServedModelChanged(InvalidConfig):
    """The endpoint no longer serves the model that was trained."""


def served_model(observed: ObservedEndpoint) -> str:
    """Return the registered model that answers.

    Raises:
        InvalidConfig: no registered model answers, or several deployments share the traffic.
    """
    spec = observed.endpoint.spec
    reference = parse_model_uri(spec.variants[main_variant(spec)].model)
    if not reference.is_registered:
        raise InvalidConfig(f"endpoint {spec.name!r} serves no registered model, and only versions of one are trained")
    return reference.name


def served_version(observed: ObservedEndpoint) -> str:
    """Return the version that answers. If the server does not run, return the one that it would serve.

    Raises:
        InvalidConfig: as `served_model`.
        NotFound / RegistryUnavailable: nobody says which.
    """
    spec = observed.endpoint.spec
    main = main_variant(spec)
    snapshot = take_snapshot(observed, with_counters=False).versions.get(main)
    return snapshot or resolve(spec.variants[main].model).version


def answering_version(deployments: Deployments, endpoint: str, model: str) -> str:
    """Return the version of the model that answers now; empty while a rollout decides it, or if it is unknown.

    Raises:
        ServedModelChanged: the endpoint serves another one by now.
        NotFound: there is no such endpoint.
        RegistryUnavailable: nobody says which version.
    """
    observed = deployments.get_endpoint(endpoint)
    try:
        served = served_model(observed)
    except InvalidConfig:
        return ""
    if served != model:
        raise ServedModelChanged(f"endpoint {endpoint!r} serves {served} now, and no longer {model}")
    try:
        return served_version(observed)
    except NotFound:  # the alias is held by nobody just now
        return ""
