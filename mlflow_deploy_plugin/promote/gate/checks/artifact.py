"""The checks of the files of a version: parity of the ONNX form, and the signature.

The predictions of a quantized or 16-bit graph intentionally differ from the
original's. Therefore, the parity of an optimized version is checked on its base. The
version is also compared with the base on the rows of the gate, and its loss must be
within the margin of the evaluation.

The signature check requires that clients of the current version can use the new version
without a change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, ReportTable
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.wrap.evaluation.agreement import compare_with_base
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    LabelledRows,
    NamedArrays,
    cast_to_signature,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx

PARITY = "parity"
SIGNATURE = "signature"
_ACCEPTED_PARITY = {
    "proven": ("proven",),
    "warned": ("proven", "warned"),
    "any": ("proven", "warned", "no-original"),
}
_ACCEPTED_TYPES = {
    "double": ("float", "integer", "long"),
    "float": ("double", "integer", "long"),
    "long": ("integer",),
    "integer": (),
    "boolean": (),
    "string": (),
}
"""Maps each column type to the other types whose values it accepts, according to
`serve/runtime/values.py`. As float, a double beyond 32 bits is refused, and any other
is rounded.
"""
_KINDS = {"str": "text", "object": "text", "bool": "true or false"}


def check_parity(artifact: Artifact, policy: GatePolicy) -> CheckResult:
    """Check the parity that was measured when the model was logged. Read the files,
    because any user can set a tag.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        return CheckResult(
            PARITY,
            "skipped",
            "the version has no ONNX form, so the original model predicts",
        )
    state = artifact.parity_state
    parity = artifact.parity
    rows = int(parity.get("rows", 0))
    figures = {"rows": float(rows)}
    summary = f"the ONNX form is {state}"
    if rows:
        summary += f" on {rows:,} rows"
    if state in _ACCEPTED_PARITY[policy.parity]:
        return CheckResult(PARITY, "passed", summary, figures)
    if state == "warned":
        problem = parity.get("problem") or parity.get("unproven") or "its predictions differ"
        summary += f" ({problem})"
    elif state == "no-original":
        summary += (
            " (there was no original to compare with; log the model with onnxserve.log_model)"
        )
    reason = f"{summary}; the policy requires {policy.parity}"
    return CheckResult(PARITY, "failed", reason, figures)


def check_agreement(
    form: LoadedOnnx,
    base: LoadedOnnx,
    policy: GatePolicy,
    labelled: LabelledRows | None,
    rows: NamedArrays | None,
) -> CheckResult:
    """Check the base's parity, and the agreement of the optimized version `form` with
    the base.

    Args:
        labelled: the rows for the comparison with their labels; None to compare on
            `rows` without the metric.
        rows: rows without labels; None if there are none.
    """
    where = str(form.artifact.optimization.get("base"))
    proof = check_parity(base.artifact, policy)
    if proof.state == "failed":
        return CheckResult(PARITY, "failed", f"the base {where}: {proof.reason}", proof.figures)
    truth = None
    if labelled is not None:
        rows = labelled.rows
        truth = labelled.truth
    if rows is None:
        reason = f"there are no rows for the comparison with {where}; specify a dataset"
        return CheckResult(PARITY, "failed", reason)
    evaluation = policy.evaluation
    base_rows = cast_to_signature(base.artifact, rows)
    agreement = compare_with_base(base, form, base_rows, truth, evaluation.metric)
    figures = {
        "rows": float(agreement.rows),
        "loss": agreement.loss,
        "margin": evaluation.margin,
    }
    if agreement.equal is not None:
        figures["equal"] = agreement.equal
    reason = f"made from {where}, where {proof.reason}; {agreement}"
    if agreement.loss <= evaluation.margin:
        return CheckResult(PARITY, "passed", reason, figures)
    reason = (
        f"the loss {agreement.loss:.4g} ({agreement.loss_of}) exceeds the margin "
        f"{evaluation.margin:g}: {reason}"
    )
    if labelled is None:
        reason += "; an evaluation dataset in the policy measures the loss of the metric"
    return CheckResult(PARITY, "failed", reason, figures)


@dataclass(frozen=True)
class _Change:
    """A change of the signature. `before` is empty for an added column, and `after` for
    a removed one.
    """

    what: str
    name: str
    before: str = ""
    after: str = ""
    breaks_callers: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the change in the report's table."""
        note = "breaks callers" if self.breaks_callers else ""
        return self.what, self.name, self.before, self.after, note

    @property
    def sentence(self) -> str:
        """The change as a clause for a message or a note."""
        match self.what:
            case "added":
                return f"{self.name} ({self.after}) added"
            case "removed":
                return f"{self.name} ({self.before}) removed"
            case "reordered":
                return "the columns have another order, which affects rows without names"
            case _:
                return f"{self.name} {self.what} from {self.before} to {self.after}"


def check_signature(candidate: Artifact, current: Artifact, against: str) -> CheckResult:
    """Compare inputs and outputs with `current`, called `against`. Requests may still
    contain removed columns.
    """
    if candidate.undescribed or current.undescribed:
        which = "the new version" if candidate.undescribed else against
        return CheckResult(
            SIGNATURE,
            "skipped",
            f"{which} has no signature of named columns or tensors",
        )
    if candidate.columns and current.columns:
        changes = list(_column_changes(candidate, current))
    elif candidate.columns:
        changes = [_Change("retyped", "the input", "tensors", "columns", breaks_callers=True)]
    elif current.columns:
        changes = [_Change("retyped", "the input", "columns", "tensors", breaks_callers=True)]
    else:
        changes = list(_tensor_changes(candidate, current))
    changes += _output_changes(candidate, current)
    breaking = [change for change in changes if change.breaks_callers]
    table = ReportTable(
        ("change", "name", against, "new", ""),
        tuple(change.cells for change in changes),
    )
    figures = {
        "changes": float(len(changes)),
        "breaking": float(len(breaking)),
    }
    if not changes:
        return CheckResult(SIGNATURE, "passed", f"the same columns and types as {against}", figures)
    notes = tuple(change.sentence for change in breaking or changes)
    sentences = "; ".join(notes)
    if breaking:
        reason = f"callers of {against} would break: {sentences}"
        return CheckResult(SIGNATURE, "failed", reason, figures, table=table)
    reason = f"callers need no change ({sentences})"
    return CheckResult(SIGNATURE, "passed", reason, figures, notes, table)


def _compare_names(
    old: Mapping[str, object],
    new: Mapping[str, object],
) -> tuple[list[str], list[str], list[str]]:
    """Return the removed names, the added names, and the common names in the order of
    the new version.
    """
    removed = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    return removed, added, [name for name in new if name in old]


def _column_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    """Yield the changes of the columns. A new required column, a type that does not
    accept the old values, or a column that becomes required breaks callers.
    """
    new = {column.name: column for column in candidate.columns}
    old = {column.name: column for column in current.columns}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        yield _Change("removed", name, before=old[name].type)
    for name in added:
        column = new[name]
        kind = column.type if column.required else f"{column.type}, optional"
        yield _Change("added", name, after=kind, breaks_callers=column.required)
    for name in common:
        before = old[name]
        after = new[name]
        if before.type != after.type:
            accepts_old = before.type in _ACCEPTED_TYPES[after.type]
            yield _Change("retyped", name, before.type, after.type, not accepts_old)
        if after.required and not before.required:
            yield _Change("required", name, "optional", "required", breaks_callers=True)
        elif before.required and not after.required:
            yield _Change("optional", name, "required", "optional")
    if common != [name for name in old if name in new]:
        yield _Change("reordered", "the columns", ", ".join(old), ", ".join(new))


def _tensor_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    """Yield the changes of the tensors. All break callers, except a shape that accepts
    the old shape.
    """
    new = {tensor.name: tensor for tensor in candidate.tensors}
    old = {tensor.name: tensor for tensor in current.tensors}
    if len(new) == len(old) == 1 and "" in new.keys() | old.keys():
        # A single tensor needs no name.
        new = {"the tensor": next(iter(new.values()))}
        old = {"the tensor": next(iter(old.values()))}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        # A request with the removed tensor fails.
        yield _Change("removed", name, before=old[name].dtype, breaks_callers=True)
    for name in added:
        yield _Change("added", name, after=new[name].dtype, breaks_callers=True)
    for name in common:
        before = old[name]
        after = new[name]
        if before.dtype != after.dtype:
            yield _Change("retyped", name, before.dtype, after.dtype, breaks_callers=True)
        if before.shape != after.shape:
            accepts_old = len(after.shape) == len(before.shape) and all(
                size in (-1, other_size)
                for size, other_size in zip(after.shape, before.shape, strict=True)
            )
            yield _Change(
                "reshaped", name, str(list(before.shape)), str(list(after.shape)), not accepts_old
            )


def _output_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    """Yield the changes of the outputs. A removed output or another kind of values
    breaks callers.
    """
    if not candidate.outputs or not current.outputs:
        return  # The signature of a pyfunc may have no outputs.
    new = _predicted_kinds(candidate)
    old = _predicted_kinds(current)
    if len(new) == len(old) == 1:  # A single output is returned without its name.
        new = {"the prediction": next(iter(new.values()))}
        old = {"the prediction": next(iter(old.values()))}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        yield _Change("removed", name, before=old[name], breaks_callers=True)
    for name in added:
        yield _Change("added", name, after=new[name])
    for name in common:
        if new[name] != old[name]:
            yield _Change("retyped", name, old[name], new[name], breaks_callers=True)
    if candidate.classes and current.classes and set(candidate.classes) != set(current.classes):
        before = ", ".join(map(str, current.classes))
        after = ", ".join(map(str, candidate.classes))
        yield _Change("reclassed", "the classes", before, after)


def _predicted_kinds(artifact: Artifact) -> dict[str, str]:
    """Return the kind of each output that the server returns; of all outputs if the
    version does not name them.
    """
    kinds = {}
    for output in artifact.outputs:
        # A client does not see a difference between 32 and 64 bits.
        numbers = "whole numbers" if "int" in output.dtype else "numbers"
        kind = _KINDS.get(output.dtype, numbers)
        several = [size for size in output.shape[1:] if size != 1]
        kinds[output.name] = f"{kind} {several} per row" if several else kind
    return {name: kinds[name] for name in artifact.prediction if name in kinds} or kinds
