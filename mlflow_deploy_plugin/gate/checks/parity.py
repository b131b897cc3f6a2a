"""Parity: the ONNX form answers as the original does."""

from mlflow_deploy_plugin.gate.policy import GatePolicy
from mlflow_deploy_plugin.gate.result import CheckResult
from mlflow_deploy_plugin.runtime.artifact import PYTHON_FUNCTION, Artifact

NAME = "parity"
_ACCEPTED = {
    "proven": ("proven",),
    "warned": ("proven", "warned"),
    "any": ("proven", "warned", "no-original"),
}


def check_parity(artifact: Artifact, policy: GatePolicy) -> CheckResult:
    """Reads what the flavor proved when the model was logged, from its own files: a tag can be set by anybody."""
    if artifact.flavor == PYTHON_FUNCTION:
        return CheckResult(NAME, "skipped", "it has no ONNX form: the original itself answers")
    state = artifact.parity_state
    rows = int(artifact.parity.get("rows", 0))
    figures = {"rows": float(rows)}
    found = f"the ONNX form is {state}" + (f" on {rows:,} rows" if rows else "")
    if state in _ACCEPTED[policy.parity]:
        return CheckResult(NAME, "passed", found, figures)
    how = {
        "warned": artifact.parity.get("problem") or artifact.parity.get("unproven") or "it answers otherwise",
        "no-original": "nothing was there to compare it with; log it with mlflow_deploy_plugin.log_model",
    }.get(state, "")
    return CheckResult(
        NAME, "failed", f"{found}{f' ({how})' if how else ''}; the policy asks for {policy.parity}", figures
    )
