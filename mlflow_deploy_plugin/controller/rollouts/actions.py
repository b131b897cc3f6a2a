"""The actions of a rollout: add and remove its deployments, set the traffic, move the registry.

Every action looks first whether it is done already, so that it may be done again after a crash in the middle of it.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mlflow_deploy_plugin.controller.locality import is_local, rollouts_lease_name
from mlflow_deploy_plugin.controller.rollouts.plan import RolloutPlan
from mlflow_deploy_plugin.controller.rollouts.state_machine import Progress, RolloutAction, step_weights
from mlflow_deploy_plugin.controller.snapshot import EndpointSnapshot, take_snapshot
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry import ROLLED_BACK_TAG, current_version, parse_model_uri, repoint, tag_version
from mlflow_deploy_plugin.spec import VariantSpec


@dataclass(frozen=True)
class RolloutActions:
    """Does the actions of rollouts.

    Attributes:
        actor: stands in the audit trail for what is done.
        say: takes one line for each move in the registry.
    """

    deployments: Deployments
    actor: str
    say: Callable[[str], None]

    def lease_name(self) -> str:
        """Return the name of the lease for the rollouts of this machine; empty if it has no server."""
        return rollouts_lease_name(self.deployments.settings)

    def is_local(self, endpoint: str) -> bool:
        return is_local(endpoint, self.deployments.settings)

    def take_snapshot(self, endpoint: str) -> EndpointSnapshot:
        try:
            return take_snapshot(self.deployments.get_endpoint(endpoint))
        except NotFound:
            return EndpointSnapshot(None)

    def do(self, action: RolloutAction, plan: RolloutPlan, progress: Progress) -> None:
        """Do the action. It raises what `Deployments` and the registry raise, and may be done again then."""
        match action:
            case "prepare":
                self._prepare(plan)
            case "set_traffic":
                self._set_weights(
                    plan, step_weights(plan, progress.step), f"step {plan.steps[progress.step]} % of a rollout"
                )
            case "promote":
                self._promote(plan)
            case "finish":
                self._clear(plan, f"rollout to version {plan.version} has promoted it")
            case "roll_back":
                self.roll_back(plan, progress.reason)
            case "wait":
                pass

    def roll_back(self, plan: RolloutPlan, why: str) -> None:
        """Go back to what was served before: the traffic first, then the registry."""
        self._clear(plan, why)
        reference = parse_model_uri(plan.before_uri)
        main = self._variants(plan)[plan.main]
        if plan.kind == "pinned" and main.model == plan.to_uri:
            self._set_model(plan, plan.before_uri, why)
        elif plan.kind != "pinned" and current_version(reference) == plan.version:
            self._point(plan, plan.version, plan.before_version, why)
        with suppress(NotFound):  # somebody has deleted the version
            tag_version(plan.model, plan.version, ROLLED_BACK_TAG, f"{plan.endpoint}: {why}")

    def _prepare(self, plan: RolloutPlan) -> None:
        variants = self._variants(plan)
        why = f"rollout to version {plan.version}"
        config = {f"variants.{plan.candidate}.allow_pyfunc": True}  # a version that is named is consented to
        if plan.candidate not in variants:
            self.deployments.add(plan.endpoint, plan.candidate, plan.to_uri, config, why, self.actor)
        if plan.shadow and plan.shadow not in variants:
            config = {f"variants.{plan.shadow}.allow_pyfunc": True, f"variants.{plan.shadow}.shadow": True}
            self.deployments.add(plan.endpoint, plan.shadow, plan.to_uri, config, why, self.actor)

    def _promote(self, plan: RolloutPlan) -> None:
        why = f"rollout to version {plan.version} has passed its steps"
        if plan.kind == "pinned":
            if self._variants(plan)[plan.main].model != plan.to_uri:
                self._set_model(plan, plan.to_uri, why)
        elif (before := current_version(parse_model_uri(plan.before_uri))) != plan.version:
            self._point(plan, before, plan.version, why)

    def _point(self, plan: RolloutPlan, before: str, version: str, why: str) -> None:
        """Move the stage, alias or tag from the version `before`, empty if there is none, to `version`."""
        reference = parse_model_uri(plan.before_uri)
        repoint(reference, version)
        self.deployments.poll_registry(reference.name)
        self.say(f"{plan.endpoint}: {plan.before_uri} is version {version} now")
        self.deployments.store.record(
            "alias" if plan.kind == "alias" else "transition",
            endpoint=plan.endpoint,
            model=plan.model,
            version=version,
            before=f"version {before} in {reference.selector}" if before else "",
            after=f"version {version} in {reference.selector}",
            why=why,
            detail={"stood_there": before},
            actor=self.actor,
        )

    def _clear(self, plan: RolloutPlan, why: str) -> None:
        """Leave the main deployment alone with all traffic."""
        self._set_weights(plan, {plan.main: 100}, why)
        for name in (plan.candidate, plan.shadow):
            if name and name in self._variants(plan):
                self.deployments.remove(plan.endpoint, name, why, self.actor)

    def _set_weights(self, plan: RolloutPlan, wanted: dict[str, int], why: str) -> None:
        variants = self._variants(plan)
        if any(variants[name].weight != weight for name, weight in wanted.items() if name in variants):
            self.deployments.set_traffic(plan.endpoint, wanted, why, self.actor, by_rollout=True)

    def _set_model(self, plan: RolloutPlan, model_uri: str, why: str) -> None:
        config = {f"variants.{plan.main}.model": model_uri}
        self.deployments.update_endpoint(plan.endpoint, config, why, self.actor)

    def _variants(self, plan: RolloutPlan) -> dict[str, VariantSpec]:
        stored = self.deployments.store.endpoint(plan.endpoint)
        if stored is None or plan.main not in stored.spec.variants:
            raise InvalidConfig(f"the deployment {plan.main} of endpoint {plan.endpoint} was deleted")
        return stored.spec.variants
