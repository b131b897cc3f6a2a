"""Agreement of a smaller or faster form of a version with its base, from which the form was made."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, ParityError
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays
from mlflow_deploy_plugin.wrap.evaluation.metrics import Baseline, argmax_labels
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, predictions_of

_ROUNDING = 2**-18
"""The additional tolerance relative to the largest number in a row: small scores are sums of large rounded numbers."""


@dataclass(frozen=True)
class Agreement:
    """A comparison of the predictions of a form and its base.

    Attributes:
        equal: the share of rows with equal labels; None if there are no labels.
        max_difference, mean_difference: the largest of all numeric outputs, in the output's unit; None without outputs.
        relative_difference: the mean difference as a share of the standard deviation of the base's predictions.
        base_metric, form_metric: the metric of each model; NaN without labels.
        loss: the deterioration compared with the base, in the unit of `loss_of`, to which the limit applies.
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
        """Return the measure of the loss: the metric if known, otherwise "labels" or "values"."""
        return self.metric or ("labels" if self.equal is not None else "values")

    def __str__(self) -> str:
        parts = [] if self.equal is None else [f"{self.equal:.2%} equal labels"]
        if self.max_difference is not None:
            parts.append(f"mean difference {self.mean_difference:.2g} ({self.relative_difference:.2%} of the spread)")
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
) -> Agreement:
    """Compare a form with its base on the same rows, [N, …] by column or tensor, and the labels `truth`, [N].

    `metric` is accuracy for labels and rmse for numbers by default. `base_outputs` are known outputs of the base.

    Raises InvalidConfig if the metric does not fit the answers or the shapes differ from the base, and SchemaMismatch
    or InferenceError if a model rejects the rows.
    """
    want = base.outputs(rows) if base_outputs is None else base_outputs
    got = form.outputs(rows)
    count = len(next(iter(want.values())))
    labels_differ: Array | None = None
    largest, means, relative = [], [], [0.0]  # Per output; `relative` is in standard deviations of the base.
    for name, expected in want.items():
        actual = got.get(name)
        if actual is None or actual.shape != expected.shape:
            raise InvalidConfig(
                f"the base has an output {name!r} of shape {list(expected.shape)}, but the form does not"
            )
        if expected.dtype.kind != "f":
            differs = (actual != expected).reshape(count, -1).any(axis=1)
            labels_differ = differs if labels_differ is None else labels_differ | differs
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(actual.astype(np.float64) - expected)
        difference[(actual == expected) | (np.isnan(actual) & np.isnan(expected))] = 0.0
        difference[~np.isfinite(difference)] = np.inf
        known = expected[np.isfinite(expected)].astype(np.float64)
        largest.append(float(difference.max(initial=0)))
        means.append(float(difference.mean()) if difference.size else 0.0)
        relative.append(means[-1] / max(float(known.std()) if known.size else 0.0, 1e-12))
    ours, theirs = predictions_of(form.artifact, got), predictions_of(base.artifact, want)
    baseline, after = None, float("nan")
    if truth is not None:
        ours, theirs = argmax_labels(truth, ours), argmax_labels(truth, theirs)
        if theirs.is_label and labels_differ is None:  # The outputs are class scores.
            labels_differ = np.asarray(ours.prediction != theirs.prediction)
        baseline = Baseline.of(theirs, truth, metric)
        after = baseline.value_of(ours)
    equal = None if labels_differ is None else 1 - float(labels_differ.mean())
    loss = max(relative) if equal is None else 1 - equal
    if baseline is not None:
        loss = baseline.loss(after)
    return Agreement(
        rows=count,
        equal=equal,
        max_difference=max(largest, default=None),
        mean_difference=max(means, default=None),
        relative_difference=max(relative),
        metric="" if baseline is None else baseline.metric,
        base_metric=float("nan") if baseline is None else baseline.value,
        form_metric=after,
        loss=float("inf") if np.isnan(loss) else loss,
    )


def check_outputs(expected: Mapping[str, Array], outputs: Mapping[str, Array], tolerance: float, what: str) -> float:
    """Return the largest difference of outputs, [N, …] by name, from the outputs of the served model.

    `tolerance` is absolute and relative; 0 requires equality. Raises ParityError, whose message begins with `what`.
    """
    largest = 0.0
    for name, want in expected.items():
        got = outputs.get(name, np.empty(0))  # A missing output has no values.
        if (want.dtype.kind, want.shape) != (got.dtype.kind, got.shape):  # LiteRT may return int32 for int64.
            shapes = f"{got.dtype} {list(got.shape)}, but the served model returns {want.dtype} {list(want.shape)}"
            raise ParityError(f"{what}: output {name!r}, {shapes}")
        wrong = np.atleast_1d(want != got)
        if want.dtype.kind == "f":
            wide = want.astype(np.float64)
            with np.errstate(invalid="ignore"):  # Do not warn about infinity minus infinity.
                error = np.atleast_1d(np.abs(wide - got))
                size = np.where(np.isfinite(wide), np.abs(wide), 0)
                largest_of_row = size.max(axis=tuple(range(1, wide.ndim)), keepdims=True, initial=0)
                allowed = tolerance * (1 + np.abs(wide)) + (tolerance > 0) * _ROUNDING * largest_of_row
                wrong &= ~((error <= allowed) | (np.isnan(want) & np.isnan(got)))
            largest = max(largest, float(np.max(error, where=np.isfinite(error), initial=0.0)))
        if wrong.any():
            position, apart = tuple(np.argwhere(wrong)[0]), len(np.unique(np.nonzero(wrong)[0]))
            pair = f"{np.atleast_1d(got)[position]}, but the served model returns {np.atleast_1d(want)[position]}"
            raise ParityError(f"{what}: output {name!r}, row {position[0]}: {pair} ({apart} of {len(wrong)} rows)")
    return largest


def graph_digest(version: LoadedOnnx) -> str:
    """Return `sha256:…` of the ONNX file, which identifies the base of an optimized version."""
    with version.artifact.onnx_file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
