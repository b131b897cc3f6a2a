"""Robustness: the change of the predictions when the input is disturbed.

The same rows are disturbed in three ways with a seed: noise on numbers, missing values,
and values far out of range (also unseen texts). Under noise, the flips and the metric's
loss must be within the policy's limits, or at most 1.25 times the values of the current
version. Missing and out-of-range values remove information from a row, so their flips
are only reported. If the model refuses such values as a bad request, the policy decides
whether this is a failure.

A flip is a changed label. For numbers, a flip is a change by more than a quarter of the
standard deviation of the predictions.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.core.errors import InferenceError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.core.registry.policy import RobustnessPolicy
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, ReportTable, state_of
from mlflow_deploy_plugin.serve.runtime.agreement import LABELS, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.feeds import Array, row_count
from mlflow_deploy_plugin.wrap.evaluation.curves import RobustnessReport
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, take_rows
from mlflow_deploy_plugin.wrap.evaluation.disturbances import (
    with_missing,
    with_noise,
    with_out_of_range,
)
from mlflow_deploy_plugin.wrap.evaluation.metrics import RELATIVE_METRICS, Baseline
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel, ModelPredictions

NAME = "robustness"
_FLIP_DEVIATIONS = 0.25
# The factor allows the small differences between two forests that are trained on the
# same data.
_CURRENT_FACTOR = 1.25
_ROWS_OF_A_COLUMN = 500
_MAX_COLUMNS = 50
_MAX_LINES = 12
_NOISE = "noise"


@dataclass(frozen=True)
class _Outcome:
    """The effect of a disturbance, or the error message if the model refuses the rows.

    Attributes:
        kind: noise, missing or out_of_range, or one of them in one column.
        flips: the share of rows with a changed prediction.
        no_answer: the share of predictions that are not numbers.
    """

    kind: str
    flips: float = 0.0
    no_answer: float = 0.0
    loss: float | None = None
    refusal: str = ""

    @property
    def label(self) -> str:
        return self.kind.replace("out_of_range", "out-of-range")

    def figures(self) -> dict[str, float]:
        figures = {f"{self.kind}_refused": float(bool(self.refusal))}
        if not self.refusal:
            figures |= {f"{self.kind}_flips": self.flips, f"{self.kind}_no_answer": self.no_answer}
            if self.loss is not None:
                figures[f"{self.kind}_loss"] = self.loss
        return figures

    def cells(self, metric: str) -> tuple[str, ...]:
        """Return the cells of the outcome in the report's table."""
        if self.refusal:
            return self.label, "refused", "", ""
        loss = "" if self.loss is None else _format_amount(metric, self.loss)
        return self.label, f"{self.flips:.1%}", f"{self.no_answer:.1%}", loss

    def failures(self, policy: RobustnessPolicy) -> list[str]:
        """Return the reasons for which the policy refuses the outcome of missing or
        out-of-range values.
        """
        if policy.refusals == "report":
            return []
        if self.refusal:
            return [f"{self.label} values are refused: {self.refusal}"]
        return self._missing_answers(f"to {self.label} values")

    def noise_failures(self, policy: RobustnessPolicy) -> list[str]:
        """Return the reasons for which the policy refuses the outcome of noise."""
        if self.refusal:
            return [f"rows with noise are refused: {self.refusal}"]
        messages = []
        if self.flips > policy.max_flips:
            messages.append(
                f"{self.flips:.1%} of the predictions change under noise of {policy.noise:.0%} of "
                f"the std; the policy allows {policy.max_flips:.1%}"
            )
        if self.loss is not None and not self.loss <= policy.max_loss:
            messages.append(
                f"the metric loses {self.loss:.4f} under noise; the policy allows "
                f"{policy.max_loss:g}"
            )
        return messages + self._missing_answers("under noise")

    def bounds(self, policy: RobustnessPolicy) -> RobustnessPolicy:
        """Return the limits for a new version, if this is the outcome of the current
        version. The new version need not be better.
        """
        max_loss = max(policy.max_loss, (self.loss or 0.0) * _CURRENT_FACTOR)
        max_flips = max(policy.max_flips, self.flips * _CURRENT_FACTOR)
        return policy.model_copy(update={"max_flips": max_flips, "max_loss": max_loss})

    def summary(self, rows: int, policy: RobustnessPolicy, measure: str) -> str:
        """Return the share of predictions that noise changes, and the loss of the
        metric `measure` if it was measured.
        """
        summary = (
            f"{self.flips:.1%} of {rows:,} predictions change under noise of {policy.noise:.0%} of "
            "the std"
        )
        if self.loss is None:
            return summary
        loss = _format_amount(measure, self.loss) if self.loss > 0 else "nothing"
        return f"{summary}, {measure} loses {loss}"

    def _missing_answers(self, where: str) -> list[str]:
        if self.no_answer > 0:
            return [f"{self.no_answer:.1%} of the predictions {where} are not numbers"]
        return []


def check_robustness(
    model: LoadedModel,
    rows: NamedArrays,
    policy: RobustnessPolicy,
    seed: int,
    truth: Array | None = None,
    metric: MetricName | None = None,
    current: tuple[LoadedModel, NamedArrays] | None = None,
    against: str = "",
) -> CheckResult:
    """Disturb the rows, and compare the predictions with the predictions of the
    undisturbed rows.

    Args:
        rows: the rows with only the columns of the model.
        truth: [N] labels of the rows; None to omit the metric.
        metric: the metric; default: accuracy for classes, rmse for numbers.
        current: the current version, called `against`, and the same rows in this
            version's types.

    Raises InvalidConfig if the metric does not fit or is not a number, and
    SchemaMismatch or InferenceError if the model refuses the undisturbed rows.
    """
    clean = _Undisturbed.of(model, rows, truth, metric)
    rngs = [np.random.default_rng([seed, number]) for number in range(3)]
    noise = clean.outcome(_NOISE, with_noise(rows, policy.noise, rngs[0]))
    outcomes = [
        noise,
        clean.outcome("missing", with_missing(rows, policy.missing, rngs[1])),
        clean.outcome("out_of_range", with_out_of_range(rows, policy.out_of_range, rngs[2])),
    ]
    notes = [
        f"{outcome.label} values are refused: {outcome.refusal}"
        for outcome in outcomes
        if outcome.refusal
    ]
    figures = {"rows": float(row_count(rows))}
    for outcome in outcomes:
        figures |= outcome.figures()
    bounds = policy
    theirs = None
    if noise.noise_failures(policy) and current is not None:
        # The current version may refuse the rows.
        with suppress(SchemaMismatch, InferenceError, InvalidConfig):
            disturbed = with_noise(current[1], policy.noise, np.random.default_rng([seed, 0]))
            theirs = _Undisturbed.of(*current, truth, metric).outcome(_NOISE, disturbed)
    if theirs is not None and not theirs.refusal:
        bounds = theirs.bounds(policy)
        notes.append(
            f"under the same noise, {theirs.flips:.1%} of the predictions of {against} change"
        )
        figures["noise_flips_current"] = theirs.flips
    failures = noise.noise_failures(bounds)
    for outcome in outcomes[1:]:
        failures += outcome.failures(bounds)
    outcomes += _outcomes_by_column(model, rows, policy, seed)
    return CheckResult(
        NAME,
        state_of(failures),
        "; ".join(failures) or noise.summary(row_count(rows), policy, clean.measure),
        figures,
        notes=tuple(notes),
        table=ReportTable(
            (
                "disturbance",
                "changed predictions",
                "predictions without a number",
                f"loss of {clean.measure}",
            ),
            tuple(outcome.cells(clean.measure) for outcome in outcomes),
        ),
    )


def check_disturbances(report: RobustnessReport, policy: RobustnessPolicy) -> CheckResult:
    """Compare the loss of the metric under each disturbance with the largest loss that
    the policy allows. The policy decides whether refused rows are failures or notes.
    """
    losses: dict[str, float] = {}
    notes = list(report.notes)
    for point in report.points:
        name = f"{point.disturbance} {point.strength:g}"
        if point.loss is None:
            notes.append(f"{name}: {point.refusal}")
        else:
            losses[f"{name} of {point.variant}" if point.variant else name] = point.loss
    failures = [f"{name} cannot be measured: {reason}" for name, reason in report.cannot.items()]
    if policy.refusals == "fail":
        failures += notes
        notes = []
    clean = f"{report.metric} {report.clean:.4f}"
    for name, loss in losses.items():
        if loss > policy.max_drop:
            failures.append(
                f"{clean} loses {_format_amount(report.metric, loss)} under {name}; the policy "
                f"allows {_format_amount(report.metric, policy.max_drop)}"
            )
    reason = "; ".join(failures) or "the model predicts no disturbed row"
    if losses and not failures:
        name = max(losses, key=losses.__getitem__)
        worst = _format_amount(report.metric, losses[name])
        reason = f"{clean} loses at most {worst}, under {name}"
    table = report.table()
    return CheckResult(
        "disturbances",
        state_of(failures),
        reason,
        {
            name.removeprefix("robustness/"): value
            for name, value, step in report.figures()
            if not step
        },
        notes=tuple(notes),
        table=ReportTable(table[0], tuple(table[1:])),
    )


def flipped_rows(clean: ModelPredictions, disturbed: ModelPredictions) -> Array:
    """Return [N] booleans: True for a row whose prediction has changed."""
    before = clean.prediction
    after = disturbed.prediction
    tolerance = LABELS
    if not clean.is_label:
        before = before.astype(np.float64)
        after = after.astype(np.float64)
        deviation = np.maximum(np.nanstd(before, axis=0), 1e-12)  # Not 0 for a constant.
        tolerance = Tolerance(absolute=_FLIP_DEVIATIONS * deviation)
    return ~compare(before, after, tolerance).by_row().same


def _outcomes_by_column(
    model: LoadedModel,
    rows: NamedArrays,
    policy: RobustnessPolicy,
    seed: int,
) -> list[_Outcome]:
    """Disturb a single column at a time, and return the refusals and the outcomes with
    the most flips. For a model with one column, the result is empty.
    """
    sample = take_rows(rows, slice(0, _ROWS_OF_A_COLUMN))
    if len(sample) == 1:
        return []
    clean = _Undisturbed.of(model, sample)
    outcomes = []
    for index, name in enumerate(list(sample)[:_MAX_COLUMNS]):
        rng = np.random.default_rng([seed, index])
        column = {name: sample[name]}
        disturbed = {
            "noise": with_noise(column, policy.noise, rng),
            "missing": with_missing(column, policy.missing, rng),
        }
        outcomes += [
            clean.outcome(f"{kind} in {name}", {**sample, **values})
            for kind, values in disturbed.items()
        ]
    notable = [outcome for outcome in outcomes if outcome.refusal or outcome.flips > 0]
    notable.sort(key=lambda outcome: (not outcome.refusal, -outcome.flips))
    return notable[:_MAX_LINES]


@dataclass(frozen=True, eq=False)
class _Undisturbed:
    """A model with its predictions for the undisturbed rows, and their metric or
    None.
    """

    model: LoadedModel
    predictions: ModelPredictions
    baseline: Baseline | None

    @staticmethod
    def of(
        model: LoadedModel,
        rows: NamedArrays,
        truth: Array | None = None,
        metric: MetricName | None = None,
    ) -> "_Undisturbed":
        predictions = model.predict(rows)
        baseline = None if truth is None else Baseline.of(predictions, truth, metric)
        return _Undisturbed(model, predictions, baseline)

    @property
    def measure(self) -> str:
        return self.baseline.metric if self.baseline is not None else "metric"

    def outcome(self, name: str, rows: NamedArrays) -> _Outcome:
        """Predict the disturbed rows, and compare with the undisturbed rows."""
        try:
            disturbed = self.model.predict(rows)
        except (SchemaMismatch, InferenceError) as error:
            return _Outcome(name, refusal=error.message)
        loss = None
        if self.baseline is not None:
            loss = self.baseline.loss(self.baseline.value_of(disturbed))
        return _Outcome(
            name,
            flips=float(flipped_rows(self.predictions, disturbed).mean()),
            no_answer=disturbed.no_number - self.predictions.no_number,
            loss=loss,
        )


def _format_amount(metric: str, value: float) -> str:
    if metric in RELATIVE_METRICS:
        return f"{value:.1%}"
    return f"{value:.4f}"
