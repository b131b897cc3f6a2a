"""Parity of an optimized version, by way of its base.

A quantized, halved or pruned graph answers otherwise than its original by intention, so no proof of parity can pass.
Its base has that proof. The form is compared with its base on the rows of the gate, and may lose no more than the
margin of the evaluation.
"""

from mlflow_deploy_plugin.evaluation import LabelledRows, LoadedOnnx, NamedArrays, cast_to_signature, compare_with_base
from mlflow_deploy_plugin.gate.checks.artifact import PARITY, check_parity
from mlflow_deploy_plugin.gate.policy import GatePolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult


def check_agreement(
    form: LoadedOnnx, base: LoadedOnnx, policy: GatePolicy, labelled: LabelledRows | None, rows: NamedArrays | None
) -> CheckResult:
    """Check the parity of an optimized version by way of its base: the base is proven, and the form agrees with it.

    Args:
        labelled: the rows of the evaluation; None: the policy names no dataset, and `rows` are compared.
    """
    where = str(form.artifact.optimization.get("base"))
    proof = check_parity(base.artifact, policy)
    if proof.state == "failed":
        return CheckResult(PARITY, "failed", f"of {where}, which it was made from: {proof.reason}", proof.figures)
    if labelled is not None:
        rows = labelled.rows
    if rows is None:
        return CheckResult(PARITY, "failed", f"there are no rows to compare it on with {where}; name a dataset")
    evaluation = policy.evaluation
    truth = None if labelled is None else labelled.truth
    found = compare_with_base(base, form, cast_to_signature(base.artifact, rows), truth, evaluation.metric)
    figures = {"rows": float(found.rows), "loss": found.loss, "margin": evaluation.margin}
    if found.equal is not None:
        figures["equal"] = found.equal
    reason = f"made from {where}, where {proof.reason}; {found}"
    if found.loss <= evaluation.margin:
        return CheckResult(PARITY, "passed", reason, figures)
    hint = "" if labelled is not None else "; an evaluation dataset in the policy would measure the loss itself"
    return CheckResult(
        PARITY,
        "failed",
        f"it loses {found.loss:.4g} ({found.loss_of}), more than the margin of {evaluation.margin:g}: {reason}{hint}",
        figures,
    )
