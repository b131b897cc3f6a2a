"""Agreement of a smaller or faster form of a version with its base, from which the form
was made.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, ParityError
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.serve.runtime.agreement import LABELS, Agreement, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.metrics import Baseline, argmax_labels, spread
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, predictions_of


def rounding_tolerance(share: float) -> Tolerance:
    """Return the tolerance for another runtime or processor: a share of 1 and of each
    number.

    Small scores are sums of large rounded numbers. Therefore a number may also differ
    by 2⁻¹⁸ of the largest number in its row, which is the rounding of 32-bit floats.
    """
    return Tolerance(absolute=share, relative=share, of_row=2**-18)


@dataclass(frozen=True)
class FormAgreement:
    """A comparison of the predictions of a form and its base.

    Attributes:
        equal: the share of rows with equal labels; None if there are no labels.
        max_difference, mean_difference: the largest of all numeric outputs, in the
            output's unit; None without outputs.
        relative_difference: the mean difference as a share of the standard deviation of
            the base's predictions.
        base_metric, form_metric: the metric of each model; NaN without labels.
        loss: the deterioration compared with the base, in the unit of `loss_of`, to
            which the limit applies.
    """

    rows: int
    equal: float | None
    max_difference: float | None
    mean_difference: float | None
    relative_difference: float
    metric: str
    base_metric: float
    form_metric: float
    loss: float

    @property
    def loss_of(self) -> str:
        """Return the measure of the loss: the metric if known, otherwise "labels" or
        "values".
        """
        return self.metric or ("labels" if self.equal is not None else "values")

    def __str__(self) -> str:
        parts = [] if self.equal is None else [f"{self.equal:.2%} equal labels"]
        if self.max_difference is not None:
            parts.append(
                f"mean difference {self.mean_difference:.2g} ({self.relative_difference:.2%} of "
                "the spread)",
            )
        if self.metric:
            parts.append(f"{self.metric} {self.form_metric:.4f}, base {self.base_metric:.4f}")
        return f"{', '.join(parts)} on {self.rows:,} rows"


def compare_with_base(
    base: LoadedOnnx,
    form: LoadedOnnx,
    rows: NamedArrays,
    truth: Array | None = None,
    metric: MetricName | None = None,
    base_outputs: Mapping[str, Array] | None = None,
) -> FormAgreement:
    """Compare a form with its base on the same rows, [N, …] by column or tensor, and
    the labels `truth`, [N].

    `metric` is accuracy for labels and rmse for numbers by default. `base_outputs` are
    known outputs of the base.

    Raises InvalidConfig if the metric does not fit the answers or the shapes differ
    from the base, and SchemaMismatch or InferenceError if a model rejects the rows.
    """
    want = base.outputs(rows) if base_outputs is None else base_outputs
    got = form.outputs(rows)
    agreements = {
        name: _agreement(name, expected, got.get(name)) for name, expected in want.items()
    }
    numbers = {name: agreement for name, agreement in agreements.items() if agreement.are_numbers}
    means = {name: _mean(agreement.differences) for name, agreement in numbers.items()}
    relative = max(
        (mean / max(spread(want[name]), 1e-12) for name, mean in means.items()),
        default=0.0,
    )
    labels = [
        agreement.by_row().same for agreement in agreements.values() if not agreement.are_numbers
    ]
    same_labels = np.logical_and.reduce(labels) if labels else None
    ours = predictions_of(form.artifact, got)
    theirs = predictions_of(base.artifact, want)
    baseline = None
    after = float("nan")
    if truth is not None:
        ours = argmax_labels(truth, ours)
        theirs = argmax_labels(truth, theirs)
        if theirs.is_label and same_labels is None:  # The outputs are class scores.
            same_labels = compare(theirs.prediction, ours.prediction, LABELS).same
        baseline = Baseline.of(theirs, truth, metric)
        after = baseline.value_of(ours)
    equal = None if same_labels is None else 1 - float((~same_labels).mean())
    loss = relative if equal is None else 1 - equal
    if baseline is not None:
        loss = baseline.loss(after)
    return FormAgreement(
        rows=row_count(want),
        equal=equal,
        max_difference=max((agreement.largest for agreement in numbers.values()), default=None),
        mean_difference=max(means.values(), default=None),
        relative_difference=relative,
        metric="" if baseline is None else baseline.metric,
        base_metric=float("nan") if baseline is None else baseline.value,
        form_metric=after,
        loss=float("inf") if np.isnan(loss) else loss,
    )


def _agreement(name: str, expected: Array, actual: Array | None) -> Agreement:
    """Compare an output of a form with the output of its base. Raises InvalidConfig if
    their shapes differ.
    """
    if actual is None or actual.shape != expected.shape:
        raise InvalidConfig(
            f"the base has an output {name!r} of shape {list(expected.shape)}, but the form does "
            "not",
        )
    return compare(expected, actual)


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


def check_outputs(
    expected: Mapping[str, Array],
    outputs: Mapping[str, Array],
    tolerance: Tolerance,
    what: str,
) -> float:
    """Return the largest difference of outputs, [N, …] by name, from the outputs of the
    served model.

    Raises ParityError, whose message begins with `what`, if an output is not within the
    tolerance.
    """
    largest = 0.0
    for name, want in expected.items():
        got = outputs.get(name, np.empty(0))  # A missing output has no values.
        if (want.dtype.kind, want.shape) != (
            got.dtype.kind,
            got.shape,
        ):  # LiteRT may return int32 for int64.
            shapes = (
                f"{got.dtype} {list(got.shape)}, but the served model returns {want.dtype} "
                f"{list(want.shape)}"
            )
            raise ParityError(f"{what}: output {name!r}, {shapes}")
        agreement = compare(want, got, tolerance)
        if not agreement.is_same:
            position = tuple(np.argwhere(~agreement.same)[0])
            pair = (
                f"{np.atleast_1d(got)[position]}, but the served model returns "
                f"{np.atleast_1d(want)[position]}"
            )
            rows = f"{agreement.differing_rows} of {len(agreement.same)} rows"
            raise ParityError(f"{what}: output {name!r}, row {position[0]}: {pair} ({rows})")
        if agreement.are_numbers:
            largest = max(largest, agreement.largest)
    return largest


def graph_digest(version: LoadedOnnx) -> str:
    """Return `sha256:…` of the ONNX file, which identifies the base of an optimized
    version.
    """
    with version.artifact.onnx_file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
