"""Comparison of a shadow's outputs with those of the answering variant, row by row.

Classifiers agree if their labels are equal. Everything else agrees if texts, integers and booleans are equal and
floating-point numbers are within `RELATIVE` of the larger one. A retrained regressor never predicts the same number
twice: what counts is whether a client would notice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.runtime import Array, Artifact, Output, row_count

RELATIVE, ABSOLUTE = 0.01, 1e-6

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ShadowComparison:
    """The comparison of two sets of outputs for the same rows.

    Attributes:
        same: bool [N].
        differences: float64 [N], the largest absolute difference among a row's floating-point numbers; not finite if
            only one of two is a number. Empty if the outputs have no such numbers.
    """

    same: Array
    differences: Array


def compare_outputs(given_by: Artifact, given: Outputs, shadow: Artifact, computed: Outputs) -> ShadowComparison:
    """Compare the outputs of two graphs for the same rows, whichever of them were requested.

    Raises:
        InferenceError: they have no outputs in common, or not the same number of rows.
    """
    rows = row_count(given)
    if rows != row_count(computed):
        raise InferenceError(f"the shadow answered {row_count(computed)} rows to a request of {rows}")
    pairs = list(_pairs(given_by, given, shadow, computed))
    found = [_difference(*pair) for pair in pairs if _are_floats(*pair)]
    differences = np.max(found, axis=0) if found else np.empty(0)
    labels = _labels(given_by, given, rows), _labels(shadow, computed, rows)
    if labels[0] is not None and labels[1] is not None:
        return ShadowComparison(_is_equal(labels[0], labels[1]), differences)
    if not pairs:
        raise InferenceError(
            f"nothing in the shadow's answer ({', '.join(computed) or 'empty'}) can be compared with the one that was "
            f"given ({', '.join(given) or 'empty'})"
        )
    return ShadowComparison(np.logical_and.reduce([_is_close(*pair) for pair in pairs]), differences)


def _labels(artifact: Artifact, outputs: Outputs, rows: int) -> Array | None:
    """Return each row's label [N, k], or None if the model has none.

    It is the label output, else the class of the highest probability, else what `predict` returns (of a stock `onnx`
    model the first output) if that is one value a row and no fraction.
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


def _pairs(given_by: Artifact, given: Outputs, shadow: Artifact, computed: Outputs) -> Iterator[tuple[Array, Array]]:
    """Yield corresponding arrays, [N, k] each: those of the same name, else of the same place among their role."""
    ours = [output for output in given_by.outputs if output.name in given and output.role != "label"]
    theirs = [output for output in shadow.outputs if output.name in computed and output.role != "label"]
    for output in ours:
        other = _counterpart(output, ours, theirs)
        if other is None:
            continue
        one, two = given[output.name], computed[other.name]
        if output.role == "probabilities" == other.role and given_by.classes != shadow.classes:
            if sorted(map(str, given_by.classes)) != sorted(map(str, shadow.classes)):
                continue
            two = two[:, [shadow.classes.index(name) for name in given_by.classes]]
        if one.shape[:1] == two.shape[:1] != () and one.size == two.size:
            yield one.reshape(len(one), -1), two.reshape(len(two), -1)


def _counterpart(output: Output, ours: list[Output], theirs: list[Output]) -> Output | None:
    for other in theirs:
        if other.name == output.name:
            return other
    mine, alike = ([one for one in outputs if one.role == output.role] for outputs in (ours, theirs))
    return alike[mine.index(output)] if len(mine) == len(alike) else None


def _are_floats(one: Array, two: Array) -> bool:
    """Return whether both are numbers, and one of them floating-point: integers may be codes."""
    kinds = one.dtype.kind + two.dtype.kind
    return "f" in kinds and set(kinds) <= set("fiu")


def _difference(one: Array, two: Array) -> Array:
    """Return float64 [N], the largest difference of each row: 0 if both are NaN, NaN if one is."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(one.astype(np.float64) - two.astype(np.float64))
    difference[(one == two) | ((one != one) & (two != two))] = 0.0
    result: Array = difference.max(axis=1, initial=0.0)
    return result


def _is_close(one: Array, two: Array) -> Array:
    """Return bool [N], whether the values of a row are the same up to the tolerance."""
    if not _are_floats(one, two):
        return _is_equal(one, two)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = ABSOLUTE + RELATIVE * np.maximum(np.abs(one), np.abs(two))
        near = np.abs(one.astype(np.float64) - two) <= np.where(np.isfinite(bound), bound, 0.0)
    both_missing = (one != one) & (two != two)
    result: Array = (near | (one == two) | both_missing).all(axis=1)
    return result


def _is_equal(one: Array, two: Array) -> Array:
    """Return bool [N], whether all values of a row are equal, whatever types the two arrays have."""
    if one.shape != two.shape:
        return np.zeros(len(one), dtype=bool)
    if one.dtype.kind in "fiub" and two.dtype.kind in "fiub":
        result: Array = (one == two).all(axis=1)
        return result
    pairs = zip(one.tolist(), two.tolist(), strict=True)
    return np.fromiter((a == b for a, b in pairs), dtype=bool, count=len(one))
