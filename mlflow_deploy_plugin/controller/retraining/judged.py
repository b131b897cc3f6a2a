"""The gate of a candidate: the model's policy, beside what is served, on the newest labelled rows."""

from mlflow_deploy_plugin.controller.retraining.plan import RetrainPlan
from mlflow_deploy_plugin.gate.run import GateRun, PolicyChoice, choose_policy, judge_and_log
from mlflow_deploy_plugin.gate.verdict import GateVerdict
from mlflow_deploy_plugin.registry.resolve import resolve
from mlflow_deploy_plugin.registry.transitions import registered_version
from mlflow_deploy_plugin.store import Store


def judge_candidate(
    plan: RetrainPlan, version: str, against: str, dataset: str, target: str, actor: str, store: Store
) -> GateRun:
    """Judges the version by its model's policy beside the version `against`, and writes the verdict on it.

    Where the policy names no dataset, the newest labelled rows of the window are it, which neither version has learned:
    the candidate may not be worse on them than what is served, by the policy's own margin and confidence.

    Raises as `gate.run.run_gate`.
    """
    chosen = choose_policy(plan.model)
    policy = chosen.policy
    if dataset and not policy.evaluation.dataset:
        evaluation = policy.evaluation.model_copy(update={"dataset": dataset, "target": target})
        where = f"{chosen.where}, on the newest labelled rows"
        chosen = PolicyChoice(policy.model_copy(update={"evaluation": evaluation}), where, chosen.is_the_models)
    current = resolve(f"models:/{plan.model}/{against}")
    return judge_and_log(registered_version(plan.model, version), current, chosen, actor, store, lambda _: None)


def is_compared(verdict: GateVerdict) -> bool:
    """Whether the version was compared on labelled rows, or its policy does without."""
    skipped = [check for check in verdict.checks if check.name == "evaluation" and check.state == "skipped"]
    return not skipped or "evaluation" in verdict.policy.get("skip", ())


def figures_of(verdict: GateVerdict) -> dict[str, float]:
    """What the evaluation says in numbers, for the list of retrainings."""
    found = [check for check in verdict.checks if check.name == "evaluation"]
    return {
        f"evaluation.{name}": float(value)
        for check in found
        for name, value in check.figures.items()
        if isinstance(value, int | float)
    }
