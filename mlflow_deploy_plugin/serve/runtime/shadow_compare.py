"""Row-by-row comparison of a shadow's outputs with the outputs of the answering variant.

Classifiers agree if their labels are equal. Other rows agree if texts, integers and booleans are equal and the
difference of floating-point numbers is within `RELATIVE` of the larger number.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, as_table, row_count

RELATIVE, ABSOLUTE = 0.01, 1e-6

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """The comparison of two sets of outputs for the same rows. `same` is bool [N].

    `differences` is float64 [N], the largest absolute difference of a row's floating-point numbers. A difference is not
    finite if only one of two values is a number. The array is empty if no output has such numbers.
    """

    same: Array
    differences: Array


def compare_outputs(
    answering: Artifact, outputs: Outputs, shadow: Artifact, shadow_outputs: Outputs
) -> ShadowComparison:
    """Compare the outputs of two graphs for the same rows.

    Raises InferenceError if the graphs have no common outputs or returned different numbers of rows.
    """
    rows, shadow_rows = row_count(outputs), row_count(shadow_outputs)
    if rows != shadow_rows:
        raise InferenceError(f"the shadow returned {shadow_rows} rows for a request of {rows} rows")
    pairs = list(_pairs(answering, outputs, shadow, shadow_outputs))
    by_pair = [_difference(*pair) for pair in pairs if _are_floats(*pair)]
    differences = np.max(by_pair, axis=0) if by_pair else np.empty(0)
    labels, shadow_labels = _labels(answering, outputs, rows), _labels(shadow, shadow_outputs, rows)
    if labels is not None and shadow_labels is not None:
        return ShadowComparison(_is_equal(labels, shadow_labels), differences)
    if not pairs:
        raise InferenceError(
            f"no output of the shadow ({', '.join(shadow_outputs) or 'empty'}) can be compared with an output of the "
            f"answering variant ({', '.join(outputs) or 'empty'})"
        )
    return ShadowComparison(np.logical_and.reduce([_is_close(*pair) for pair in pairs]), differences)


def _labels(artifact: Artifact, outputs: Outputs, rows: int) -> Array | None:
    """Return each row's label [N, k], or None if the model has no labels.

    The label is the label output, otherwise the class with the highest probability, otherwise the prediction (the first
    output of a stock `onnx` model) if it has one value per row and is not a float.
    """
    by_role = {output.role: outputs[output.name] for output in artifact.outputs if output.name in outputs}
    if (label := by_role.get("label")) is not None and label.shape[:1] == (rows,):
        return label.reshape(rows, -1)
    probabilities = by_role.get("probabilities")
    if probabilities is not None and probabilities.shape == (rows, len(artifact.classes)):
        classes: Array = np.array(artifact.classes, dtype=object)
        classes = classes[probabilities.argmax(axis=1)]
        return classes.reshape(rows, 1)
    if len(artifact.prediction) != 1 and artifact.flavor != "onnx":
        return None
    first = outputs.get(artifact.prediction[0])
    if first is None or first.dtype.kind == "f" or first.size != rows:
        return None
    return first.reshape(rows, 1)


def _pairs(
    answering: Artifact, outputs: Outputs, shadow: Artifact, shadow_outputs: Outputs
) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of outputs, [N, k] each, that have the same name, or otherwise the same role and position."""
    ours, others = _by_place(answering, outputs), _by_place(shadow, shadow_outputs)
    by_name = {other.name: other for other in others.values()}
    for position, output in ours.items():
        other = by_name.get(output.name) or others.get(position)
        if other is None:  # Skip an output without a counterpart.
            continue
        left, right = outputs[output.name], shadow_outputs[other.name]
        if output.role == "probabilities" == other.role and answering.classes != shadow.classes:
            if sorted(map(str, answering.classes)) != sorted(map(str, shadow.classes)):
                continue
            right = right[:, [shadow.classes.index(name) for name in answering.classes]]
        if left.shape[:1] == right.shape[:1] != () and left.size == right.size:
            yield as_table(left), as_table(right)


def _by_place(artifact: Artifact, outputs: Outputs) -> dict[tuple[str, int, int], Output]:
    """Return all outputs except labels, by (role, position in the role, number of outputs in the role)."""
    roles: dict[str, list[Output]] = {}
    for output in artifact.outputs:
        if output.name in outputs and output.role != "label":
            roles.setdefault(output.role, []).append(output)
    return {(role, position, len(of)): output for role, of in roles.items() for position, output in enumerate(of)}


def _are_floats(left: Array, right: Array) -> bool:
    """Return True if both arrays are numbers and at least one is floating-point. Integers may be codes."""
    kinds = left.dtype.kind + right.dtype.kind
    return "f" in kinds and set(kinds) <= set("fiu")


def _difference(left: Array, right: Array) -> Array:
    """Return the largest difference of each row, float64 [N]. Two NaN differ by 0; a NaN and a number differ by NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    difference[(left == right) | ((left != left) & (right != right))] = 0.0
    result: Array = difference.max(axis=1, initial=0.0)
    return result


def _is_close(left: Array, right: Array) -> Array:
    if not _are_floats(left, right):
        return _is_equal(left, right)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = ABSOLUTE + RELATIVE * np.maximum(np.abs(left), np.abs(right))
        near = np.abs(left.astype(np.float64) - right) <= np.where(np.isfinite(bound), bound, 0.0)
    both_missing = (left != left) & (right != right)
    result: Array = (near | (left == right) | both_missing).all(axis=1)
    return result


def _is_equal(left: Array, right: Array) -> Array:
    if left.shape != right.shape:
        return np.zeros(len(left), dtype=bool)
    if left.dtype.kind in "fiub" and right.dtype.kind in "fiub":
        result: Array = (left == right).all(axis=1)
        return result
    pairs = zip(left.tolist(), right.tolist(), strict=True)
    return np.fromiter((a == b for a, b in pairs), dtype=bool, count=len(left))
