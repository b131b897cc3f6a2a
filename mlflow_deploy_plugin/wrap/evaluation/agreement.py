"""Agreement of a smaller or faster form of a version with its base, from which the form
was made.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, ParityError
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.serve.runtime.agreement import LABELS, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.metrics import Baseline, argmax_labels, spread
from mlflow_deploy_plugin.wrap.evaluation.model import Arrays, LoadedOnnx, predictions_of


def rounding_tolerance(share: float) -> Tolerance:
    """Return the tolerance for another runtime or processor: a share of 1 and of each
    number.

    Small scores are sums of large rounded numbers. Therefore a number may also differ
    by 2⁻¹⁸ of the largest number in its row, which is the rounding of 32-bit floats.
    """
    return Tolerance(absolute=share, relative=share, of_row=2**-18)


@dataclass(frozen=True, kw_only=True)
class FormAgreement:
    """A comparison of the predictions of a form and its base.

    Attributes:
        rows: the number of compared rows.
        equal: the share of rows with equal labels; None if there are no labels.
        max_difference: the largest difference of all numeric outputs, in the output's
            unit; None without outputs.
        mean_difference: the largest mean difference of a numeric output; None without
            outputs.
        relative_difference: the mean difference as a share of the standard deviation of
            the base's predictions.
        metric: the metric for labelled rows; empty without labels.
        base_metric: the metric of the base; NaN without labels.
        form_metric: the metric of the form; NaN without labels.
        loss: the deterioration compared with the base, in the unit of `loss_of`, to
            which the limit applies.
    """

    rows: int
    equal: float | None
    max_difference: float | None
    mean_difference: float | None
    relative_difference: float
    metric: str = ""
    base_metric: float = math.nan
    form_metric: float = math.nan
    loss: float

    @property
    def loss_of(self) -> str:
        """Return the measure of the loss: the metric if known, otherwise "labels" or
        "values".
        """
        if self.metric:
            return self.metric
        return "labels" if self.equal is not None else "values"

    def __str__(self) -> str:
        parts = [] if self.equal is None else [f"{self.equal:.2%} equal labels"]
        if self.max_difference is not None:
            parts.append(
                f"mean difference {self.mean_difference:.2g} ({self.relative_difference:.2%} of "
                "the spread)"
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
    base_outputs: Arrays | None = None,
) -> FormAgreement:
    """Compare the predictions of a form with those of its base.

    Args:
        base: the version from which the form was made.
        form: the smaller or faster form.
        rows: the compared rows, [N, …] by column or tensor.
        truth: the labels, [N]; None without labels.
        metric: the metric for the labels; default: accuracy for labels, rmse for
            numbers.
        base_outputs: the outputs of the base for the rows, if they have been computed
            already.

    Raises:
        InvalidConfig: the metric does not fit the answers, or the shapes of the outputs
            differ.
        SchemaMismatch: a model rejects the rows.
        InferenceError: a model cannot compute the rows.
    """
    want = base.outputs(rows) if base_outputs is None else base_outputs
    got = form.outputs(rows)
    agreement = _compare_outputs(want, got)
    if truth is None:
        return agreement
    ours = argmax_labels(truth, predictions_of(form.artifact, got))
    theirs = argmax_labels(truth, predictions_of(base.artifact, want))
    if theirs.is_label and agreement.equal is None:  # The outputs are class scores.
        same = compare(theirs.prediction, ours.prediction, LABELS).same
        agreement = replace(agreement, equal=_share(same))
    baseline = Baseline.of(theirs, truth, metric)
    value = baseline.value_of(ours)
    return replace(
        agreement,
        metric=baseline.metric,
        base_metric=baseline.value,
        form_metric=value,
        loss=_limited_loss(baseline.loss(value)),
    )


def _compare_outputs(want: Arrays, got: Arrays) -> FormAgreement:
    """Compare the outputs, [N, …] by name, without labels. Raises InvalidConfig if
    their shapes differ.
    """
    numbers = {}
    labels = []
    for name, expected in want.items():
        actual = got.get(name)
        if actual is None or actual.shape != expected.shape:
            raise InvalidConfig(
                f"the base has an output {name!r} of shape {list(expected.shape)}, but the form "
                "does not"
            )
        agreement = compare(expected, actual)
        if agreement.are_numbers:
            numbers[name] = agreement
        else:
            labels.append(agreement.by_row().same)
    means = {
        name: float(agreement.differences.mean()) if agreement.differences.size else 0.0
        for name, agreement in numbers.items()
    }
    relative = max(
        (mean / max(spread(want[name]), 1e-12) for name, mean in means.items()), default=0.0
    )
    equal = _share(np.logical_and.reduce(labels)) if labels else None
    loss = relative if equal is None else 1 - equal
    return FormAgreement(
        rows=row_count(want),
        equal=equal,
        max_difference=max((agreement.largest for agreement in numbers.values()), default=None),
        mean_difference=max(means.values(), default=None),
        relative_difference=relative,
        loss=_limited_loss(loss),
    )


def _share(same: Array) -> float:
    return 1 - float((~same).mean())


def _limited_loss(loss: float) -> float:
    return float("inf") if np.isnan(loss) else loss


def check_outputs(expected: Arrays, outputs: Arrays, tolerance: Tolerance, message: str) -> float:
    """Return the largest difference of outputs from the outputs of the served model.
    Raises ParityError if an output is not within the tolerance.

    Args:
        expected: the outputs of the served model, [N, …] by name.
        outputs: the compared outputs, [N, …] by name.
        tolerance: the tolerance of all outputs.
        message: the beginning of the error's message.
    """
    largest = 0.0
    for name, want in expected.items():
        got = outputs.get(name, np.empty(0))  # A missing output has no values.
        # LiteRT may return int32 for int64.
        if want.dtype.kind != got.dtype.kind or want.shape != got.shape:
            shapes = (
                f"{got.dtype} {list(got.shape)}, but the served model returns {want.dtype} "
                f"{list(want.shape)}"
            )
            raise ParityError(f"{message}: output {name!r}, {shapes}")
        agreement = compare(want, got, tolerance)
        if not agreement.is_same:
            position = tuple(np.argwhere(~agreement.same)[0])
            pair = (
                f"{np.atleast_1d(got)[position]}, but the served model returns "
                f"{np.atleast_1d(want)[position]}"
            )
            rows = f"{agreement.differing_rows} of {len(agreement.same)} rows"
            raise ParityError(f"{message}: output {name!r}, row {position[0]}: {pair} ({rows})")
        if agreement.are_numbers:
            largest = max(largest, agreement.largest)
    return largest


def graph_digest(version: LoadedOnnx) -> str:
    """Return `sha256:…` of the ONNX file, which identifies the base of an optimized
    version.
    """
    with version.artifact.onnx_file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
