"""Row-by-row comparison of a shadow's outputs with the outputs of the answering
variant.

Classifiers agree if their labels are equal. Other rows agree if texts, integers and
booleans are equal and the difference of floating-point numbers is within 1 % of the
larger number.
"""

from collections.abc import Iterator, Mapping
from functools import reduce

import numpy as np

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.serve.runtime.agreement import LABELS, Agreement, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, as_table, row_count

_TOLERANCE = Tolerance(absolute=1e-6, relative=0.01, is_symmetric=True)

Outputs = Mapping[str, Array]


def compare_outputs(
    answering: Artifact, outputs: Outputs, shadow: Artifact, shadow_outputs: Outputs
) -> Agreement:
    """Return the agreement of each row, [N], of the outputs of two graphs.

    The differences are those of floating-point numbers if both graphs return such
    numbers. Raises InferenceError if the graphs have no common outputs or returned
    different numbers of rows.
    """
    rows = row_count(outputs)
    shadow_rows = row_count(shadow_outputs)
    if rows != shadow_rows:
        raise InferenceError(f"the shadow returned {shadow_rows} rows for a request of {rows} rows")
    agreements = [
        compare(left, right, _TOLERANCE).by_row()
        for left, right in _pair_outputs(answering, outputs, shadow, shadow_outputs)
    ]
    deciding = agreements
    labels = _find_labels(answering, outputs, rows)
    shadow_labels = _find_labels(shadow, shadow_outputs, rows)
    if labels is not None and shadow_labels is not None:
        deciding = [compare(labels, shadow_labels, LABELS).by_row()]
    if not deciding:
        names = ", ".join(outputs) or "empty"
        shadow_names = ", ".join(shadow_outputs) or "empty"
        raise InferenceError(
            f"no output of the shadow ({shadow_names}) can be compared with an output of the "
            f"answering variant ({names})"
        )
    measured = [agreement for agreement in agreements if agreement.are_numbers]
    return Agreement(
        differences=reduce(
            np.maximum, [agreement.differences for agreement in measured or deciding]
        ),
        excess=reduce(np.maximum, [agreement.excess for agreement in deciding]),
        are_numbers=bool(measured),
    )


def _find_labels(artifact: Artifact, outputs: Outputs, rows: int) -> Array | None:
    """Return each row's label [N, k], or None if the model has no labels.

    The label is the label output, otherwise the class with the highest probability,
    otherwise the prediction (the first output of a stock `onnx` model) if it has one
    value per row and is not a float.
    """
    by_role = {
        output.role: outputs[output.name] for output in artifact.outputs if output.name in outputs
    }
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


def _pair_outputs(
    answering: Artifact, outputs: Outputs, shadow: Artifact, shadow_outputs: Outputs
) -> Iterator[tuple[Array, Array]]:
    """Yield pairs of outputs, [N, k] each, that have the same name, or otherwise the
    same role and position.
    """
    answered_by_place = _sort_by_role(answering, outputs)
    shadow_by_place = _sort_by_role(shadow, shadow_outputs)
    by_name = {other.name: other for other in shadow_by_place.values()}
    for place, output in answered_by_place.items():
        other = by_name.get(output.name) or shadow_by_place.get(place)
        if other is None:  # Skip an output without a counterpart.
            continue
        left = outputs[output.name]
        right = shadow_outputs[other.name]
        if output.role == "probabilities" == other.role and answering.classes != shadow.classes:
            if sorted(map(str, answering.classes)) != sorted(map(str, shadow.classes)):
                continue
            right = right[:, [shadow.classes.index(name) for name in answering.classes]]
        if left.shape[:1] == right.shape[:1] != () and left.size == right.size:
            yield as_table(left), as_table(right)


def _sort_by_role(artifact: Artifact, outputs: Outputs) -> dict[tuple[str, int, int], Output]:
    """Return all outputs except labels, by (role, position in the role, number of
    outputs in the role).
    """
    roles: dict[str, list[Output]] = {}
    for output in artifact.outputs:
        if output.name in outputs and output.role != "label":
            roles.setdefault(output.role, []).append(output)
    places = {}
    for role, of_role in roles.items():
        for position, output in enumerate(of_role):
            places[role, position, len(of_role)] = output
    return places
