"""The checks of the files of a version: parity of the ONNX form, and the signature.

The predictions of a quantized, 16-bit or pruned graph intentionally differ from the
original's. Therefore, the parity of an optimized version is checked on its base. The
version is also compared with the base on the rows of the gate, and its loss must be
within the margin of the evaluation.

The signature check requires that clients of the current version can use the new version
without a change.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, ReportTable
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.wrap.evaluation.agreement import compare_with_base
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    LabelledRows,
    NamedArrays,
    cast_to_signature,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx

PARITY = "parity"
SIGNATURE = "signature"
_ACCEPTED = {
    "proven": ("proven",),
    "warned": ("proven", "warned"),
    "any": ("proven", "warned", "no-original"),
}
_TAKES = {
    "double": ("float", "integer", "long"),
    "float": ("integer", "long"),
    "long": ("integer",),
    "integer": (),
    "boolean": (),
    "string": (),
}
"""Maps each column type to the other types whose values it accepts, according to
`serve/runtime/values.py`.
"""
_KINDS = {"str": "text", "object": "text", "bool": "true or false"}
_LOSES = {("double", "float"): "numbers beyond 32 bits are refused, other numbers are rounded"}


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
    rows = int(artifact.parity.get("rows", 0))
    figures = {"rows": float(rows)}
    summary = f"the ONNX form is {state}"
    if rows:
        summary += f" on {rows:,} rows"
    if state in _ACCEPTED[policy.parity]:
        return CheckResult(PARITY, "passed", summary, figures)
    how = {
        "warned": artifact.parity.get("problem")
        or artifact.parity.get("unproven")
        or "its predictions differ",
        "no-original": (
            "there was no original to compare with; log the model with "
            "mlflow_deploy_plugin.log_model"
        ),
    }.get(state, "")
    reason = f"{summary}{how and f' ({how})'}; the policy requires {policy.parity}"
    return CheckResult(PARITY, "failed", reason, figures)


def check_agreement(
    form: LoadedOnnx,
    base: LoadedOnnx,
    policy: GatePolicy,
    labelled: LabelledRows | None,
    rows: NamedArrays | None,
) -> CheckResult:
    """Check the base's parity and its agreement with the optimized version on
    `labelled`, otherwise on `rows`.
    """
    where = str(form.artifact.optimization.get("base"))
    proof = check_parity(base.artifact, policy)
    if proof.state == "failed":
        return CheckResult(PARITY, "failed", f"the base {where}: {proof.reason}", proof.figures)
    if labelled is not None:
        rows = labelled.rows
    if rows is None:
        return CheckResult(
            PARITY,
            "failed",
            f"there are no rows for the comparison with {where}; specify a dataset",
        )
    evaluation = policy.evaluation
    truth = None if labelled is None else labelled.truth
    agreement = compare_with_base(
        base,
        form,
        cast_to_signature(base.artifact, rows),
        truth,
        evaluation.metric,
    )
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
    if labelled is not None:
        hint = ""
    else:
        hint = "; an evaluation dataset in the policy measures the loss of the metric"
    return CheckResult(
        PARITY,
        "failed",
        f"the loss {agreement.loss:.4g} ({agreement.loss_of}) exceeds the margin "
        f"{evaluation.margin:g}: {reason}{hint}",
        figures,
    )


@dataclass(frozen=True)
class _Change:
    what: str
    name: str
    before: str
    after: str
    breaks: bool

    @property
    def line(self) -> tuple[str, ...]:
        note = "breaks callers" if self.breaks else ""
        return self.what, self.name, self.before, self.after, note


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
    if bool(candidate.columns) != bool(current.columns):
        before, after = ("columns", "tensors") if current.columns else ("tensors", "columns")
        inputs: Iterable[_Change] = [_Change("retyped", "the input", before, after, True)]
    else:
        find_changes = _column_changes if candidate.columns else _tensor_changes
        inputs = find_changes(candidate, current)
    changes = [*inputs, *_output_changes(candidate, current)]
    breaking = [change for change in changes if change.breaks]
    table = ReportTable(
        ("change", "name", against, "new", ""),
        tuple(change.line for change in changes),
    )
    figures = {"changes": float(len(changes)), "breaking": float(len(breaking))}
    if breaking:
        sentences = "; ".join(_sentence(change) for change in breaking)
        return CheckResult(
            SIGNATURE,
            "failed",
            f"callers of {against} would break: {sentences}",
            figures,
            table=table,
        )
    if not changes:
        return CheckResult(SIGNATURE, "passed", f"the same columns and types as {against}", figures)
    notes = tuple(_sentence(change) for change in changes)
    return CheckResult(
        SIGNATURE,
        "passed",
        f"callers need no change ({'; '.join(notes)})",
        figures,
        notes,
        table,
    )


def _compare_names(
    old: Mapping[str, object],
    new: Mapping[str, object],
) -> tuple[list[str], list[str], list[str]]:
    removed = [name for name in old if name not in new]
    return removed, [name for name in new if name not in old], [name for name in new if name in old]


def _column_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    new = {column.name: column for column in candidate.columns}
    old = {column.name: column for column in current.columns}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        yield _Change("removed", name, old[name].type, "", False)
    for name in added:
        column = new[name]
        kind = column.type if column.required else f"{column.type}, optional"
        yield _Change("added", name, "", kind, column.required)
    for name in common:
        before = old[name]
        after = new[name]
        if before.type != after.type:
            takes = before.type in _TAKES[after.type] or (before.type, after.type) in _LOSES
            yield _Change("retyped", name, before.type, after.type, not takes)
        if after.required and not before.required:
            yield _Change("required", name, "optional", "required", True)
        elif before.required and not after.required:
            yield _Change("optional", name, "required", "optional", False)
    if common != [name for name in old if name in new]:
        yield _Change("reordered", "the columns", ", ".join(old), ", ".join(new), False)


def _tensor_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    new = {tensor.name: tensor for tensor in candidate.tensors}
    old = {tensor.name: tensor for tensor in current.tensors}
    if len(new) == len(old) == 1 and new.keys() != old.keys() and "" in new.keys() | old.keys():
        new = {"": next(iter(new.values()))}  # A single tensor needs no name.
        old = {"": next(iter(old.values()))}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        # A request with the removed tensor fails.
        yield _Change("removed", name, old[name].dtype, "", True)
    for name in added:
        yield _Change("added", name, "", new[name].dtype, True)
    for name in common:
        before = old[name]
        after = new[name]
        if before.dtype != after.dtype:
            yield _Change("retyped", name or "the tensor", before.dtype, after.dtype, True)
        if before.shape != after.shape:
            fits = len(before.shape) == len(after.shape) and all(
                wide in (-1, size)
                for wide, size in zip(
                    after.shape,
                    before.shape,
                    strict=True,
                )
            )
            yield _Change(
                "reshaped",
                name or "the tensor",
                str(list(before.shape)),
                str(list(after.shape)),
                not fits,
            )


def _output_changes(candidate: Artifact, current: Artifact) -> Iterator[_Change]:
    if not candidate.outputs or not current.outputs:
        return  # The signature of a pyfunc may have no outputs.
    new = _predicted(candidate)
    old = _predicted(current)
    if len(new) == len(old) == 1:  # A single output is returned without its name.
        new = {"the prediction": next(iter(new.values()))}
        old = {"the prediction": next(iter(old.values()))}
    removed, added, common = _compare_names(old, new)
    for name in removed:
        yield _Change("removed", name, _output_kind(old[name]), "", True)
    for name in added:
        yield _Change("added", name, "", _output_kind(new[name]), False)
    for name in common:
        if _output_kind(new[name]) != _output_kind(old[name]):
            yield _Change(
                "retyped",
                name,
                _output_kind(old[name]),
                _output_kind(new[name]),
                True,
            )
    if candidate.classes and current.classes and set(candidate.classes) != set(current.classes):
        before, after = (", ".join(map(str, side.classes)) for side in (current, candidate))
        yield _Change("reclassed", "the classes", before, after, False)


def _predicted(artifact: Artifact) -> dict[str, Output]:
    by_name = {output.name: output for output in artifact.outputs}
    return {name: by_name[name] for name in artifact.prediction if name in by_name} or by_name


def _output_kind(output: Output) -> str:
    """Return the kind of an output for a client, which does not see a difference
    between 32 and 64 bits.
    """
    numbers = "whole numbers" if "int" in output.dtype else "numbers"
    kind = _KINDS.get(output.dtype, numbers)
    several = [size for size in output.shape[1:] if size != 1]
    return f"{kind} {several} per row" if several else kind


def _sentence(change: _Change) -> str:
    match change.what:
        case "added":
            return f"{change.name} ({change.after}) added"
        case "removed":
            return f"{change.name} ({change.before}) removed"
        case "reordered":
            return "the columns have another order, which affects rows without names"
        case _:
            return f"{change.name} {change.what} from {change.before} to {change.after}"
