"""Robustness: what the answers do when the input is not as it should be.

Three disturbances of the same rows, all seeded: noise on the numbers, values that are missing, values far out of range
(and texts that were never seen). Under noise the answers have to stay and the metric has to hold, within the policy's
bounds or nearly as those of what is served do. The other two change what is known of a row, so that their flips are
told and not judged; that a model refuses them as a bad request is told too, since its callers will see it, and is a
failure only where the policy says so.

A flip is another label; of numbers, a move by more than a quarter of the answers' own standard deviation: noise of 5 %
moves the answers of a linear model by 5 % of theirs, those of a forest in larger steps and less often.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.gate.dataset import NamedArrays, count_rows, take_rows
from mlflow_deploy_plugin.gate.metrics import HIGHER_IS_BETTER, RELATIVE_METRICS, WeightedMetric
from mlflow_deploy_plugin.gate.model import LoadedModel, Predictions
from mlflow_deploy_plugin.gate.policy import MetricName, RobustnessPolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult, ReportTable
from mlflow_deploy_plugin.runtime import Array

NAME = "robustness"
UNSEEN = "(never seen)"
_MOVE = 0.25
_AS_SERVED = 1.25  # of two forests from the same data, one flips a little more
_SHARE_OUT_OF_RANGE = 0.1
_ROWS_OF_A_COLUMN, _MOST_COLUMNS, _MOST_LINES = 500, 50, 12

Disturb: TypeAlias = Callable[[NamedArrays, np.random.Generator], NamedArrays]


@dataclass(frozen=True)
class LabelledMetric:
    """How good answers to the rows are.

    Attributes:
        score: makes the metric of answers; raises InvalidConfig where it does not fit them.
    """

    metric: MetricName
    score: Callable[[Predictions], WeightedMetric]

    def value(self, answers: Predictions) -> float:
        return self.score(answers)(np.ones(len(answers)))


@dataclass(frozen=True)
class _Outcome:
    """What one disturbance did: shares of flips and of answers that are no numbers, the metric's loss; or a refusal."""

    name: str
    flips: float = 0.0
    no_answer: float = 0.0
    loss: float | None = None
    refusal: str = ""


def check_robustness(
    model: LoadedModel,
    rows: NamedArrays,
    policy: RobustnessPolicy,
    seed: int,
    labelled: LabelledMetric | None = None,
    served: tuple[LoadedModel, NamedArrays] | None = None,
) -> CheckResult:
    """Disturbs the rows and compares the answers with those to the rows as they are.

    Args:
        rows: the model's columns alone.
        labelled: the metric on these rows; None: they have no labels.
        served: what is served, and the same rows as it takes them.

    Raises:
        SchemaMismatch, InferenceError: the model refuses the rows as they are.
    """
    clean = model.predict(rows)
    disturbances: dict[str, Disturb] = {
        "noise": lambda given, rng: with_noise(given, policy.noise, rng),
        "missing": lambda given, rng: with_missing(given, policy.missing, rng),
        "out_of_range": lambda given, rng: with_out_of_range(given, policy.out_of_range, rng),
    }
    outcomes = [
        _outcome(name, model, clean, disturb(rows, np.random.default_rng([seed, place])), labelled)
        for place, (name, disturb) in enumerate(disturbances.items())
    ]
    beside = _served_under_noise(served, policy, seed, labelled) if _failures(outcomes[0], policy) else None
    bounds = _no_stricter_than(beside, policy)
    failures = [failure for outcome in outcomes for failure in _failures(outcome, bounds)]
    total = count_rows(rows)
    refused = [outcome for outcome in outcomes if outcome.refusal]
    noise = outcomes[0]
    found = f"{noise.flips:.1%} of the answers to {total:,} rows change under noise of {policy.noise:.0%} of the std"
    if noise.loss is not None and labelled is not None:
        lost = _amount(labelled.metric, noise.loss)
        found += f", {labelled.metric} {f'loses {lost}' if noise.loss > 0 else 'holds'}"
    notes = tuple(f"{_shown(outcome.name)} values are refused: {outcome.refusal}" for outcome in refused)
    figures = {"rows": float(total)} | _figures(outcomes)
    if beside is not None:
        notes += (f"under the same noise {beside.flips:.1%} of the answers of what is served change",)
        figures["noise_flips_current"] = beside.flips
    table = _table([*outcomes, *_by_column(model, rows, policy, seed)], labelled)
    return CheckResult(NAME, "failed" if failures else "passed", "; ".join(failures) or found, figures, notes, table)


def _served_under_noise(
    served: tuple[LoadedModel, NamedArrays] | None, policy: RobustnessPolicy, seed: int, labelled: LabelledMetric | None
) -> _Outcome | None:
    """None: nothing is served, or it refuses these rows."""
    if served is None:
        return None
    model, rows = served
    try:
        clean = model.predict(rows)
        noise = _outcome(
            "noise", model, clean, with_noise(rows, policy.noise, np.random.default_rng([seed, 0])), labelled
        )
    except (SchemaMismatch, InferenceError, InvalidConfig):
        return None
    return None if noise.refusal else noise


def _no_stricter_than(served: _Outcome | None, policy: RobustnessPolicy) -> RobustnessPolicy:
    if served is None:
        return policy
    least = {"max_flips": served.flips * _AS_SERVED, "max_loss": (served.loss or 0.0) * _AS_SERVED}
    return policy.model_copy(update={name: max(getattr(policy, name), value) for name, value in least.items()})


def with_noise(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """Normal noise on every number, `share` of its column's standard deviation; whole numbers stay whole."""

    def disturb(values: Array) -> Array:
        noise = rng.normal(size=values.shape) * share * _spread(values)
        if values.dtype.kind == "f":
            return (values + noise).astype(values.dtype)
        return _within(values.astype(np.float64) + np.round(noise), values.dtype)

    return {name: disturb(values) if values.dtype.kind in "iuf" else values for name, values in rows.items()}


def with_missing(rows: NamedArrays, share: float, rng: np.random.Generator) -> NamedArrays:
    """A share of the values of each column taken away: NaN in numbers, None in texts."""

    def disturb(values: Array) -> Array:
        gone = rng.random(values.shape) < share
        if values.dtype.kind == "f":
            return np.where(gone, np.nan, values).astype(values.dtype)
        changed = values.astype(object)
        changed[gone] = None
        return changed

    return {name: disturb(values) for name, values in rows.items()}


def with_out_of_range(rows: NamedArrays, ranges: float, rng: np.random.Generator) -> NamedArrays:
    """A tenth of the numbers so many ranges beyond either end of their column; a tenth of the texts never seen."""

    def disturb(values: Array) -> Array:
        moved = rng.random(values.shape) < _SHARE_OUT_OF_RANGE
        if values.dtype.kind == "O":
            changed = values.copy()
            changed[moved & np.array([isinstance(value, str) for value in values.flat]).reshape(values.shape)] = UNSEEN
            return changed
        numbers = values.astype(np.float64)
        known = numbers[np.isfinite(numbers)]
        if values.dtype.kind not in "iuf" or not len(known):
            return values
        low, high = known.min(), known.max()
        far = max(high - low, 1e-12) * ranges
        ends = np.where(rng.random(values.shape) < 0.5, low - far, high + far)
        return _within(np.where(moved, ends, numbers), values.dtype)

    return {name: disturb(values) for name, values in rows.items()}


def flipped_rows(clean: Predictions, disturbed: Predictions) -> Array:
    """[N]: whether a row is answered otherwise."""
    if clean.is_label:
        changed = np.asarray(clean.prediction != disturbed.prediction)
    else:
        before, after = (np.asarray(side.prediction, dtype=np.float64) for side in (clean, disturbed))
        changed = ~(np.abs(after - before) <= _MOVE * np.maximum(np.nanstd(before, axis=0), 1e-12))
        changed &= ~(np.isnan(before) & np.isnan(after))
    return np.asarray(changed.reshape(len(clean), -1).any(axis=1))


def _by_column(model: LoadedModel, rows: NamedArrays, policy: RobustnessPolicy, seed: int) -> list[_Outcome]:
    """Noise and missing values in one column at a time: where they are refused, and what changes most answers."""
    some = take_rows(rows, slice(0, _ROWS_OF_A_COLUMN))
    clean = model.predict(some)
    outcomes = []
    for place, name in enumerate(list(some)[:_MOST_COLUMNS] if len(some) > 1 else []):
        rng, column = np.random.default_rng([seed, place]), {name: some[name]}
        changed = {"noise": with_noise(column, policy.noise, rng), "missing": with_missing(column, policy.missing, rng)}
        outcomes += [
            _outcome(f"{kind} in {name}", model, clean, {**some, **values}, None) for kind, values in changed.items()
        ]
    telling = [outcome for outcome in outcomes if outcome.refusal or outcome.flips > 0]
    return sorted(telling, key=lambda outcome: (not outcome.refusal, -outcome.flips))[:_MOST_LINES]


def _outcome(
    name: str, model: LoadedModel, clean: Predictions, rows: NamedArrays, labelled: LabelledMetric | None
) -> _Outcome:
    try:
        disturbed = model.predict(rows)
    except (SchemaMismatch, InferenceError) as error:
        return _Outcome(name, refusal=error.message)
    loss = None
    if labelled is not None:
        sign = 1.0 if HIGHER_IS_BETTER[labelled.metric] else -1.0
        before, after = labelled.value(clean), labelled.value(disturbed)
        # an error that is next to nothing doubles soon: it is a share of no less than what the answers differ by
        scale = max(abs(before), _spread(clean.prediction), 1e-12) if labelled.metric in RELATIVE_METRICS else 1.0
        loss = sign * (before - after) / scale
    return _Outcome(name, float(flipped_rows(clean, disturbed).mean()), _no_answer(disturbed) - _no_answer(clean), loss)


def _no_answer(answers: Predictions) -> float:
    """The share of rows that are answered with NaN or infinity, also among the probabilities."""
    sides = [
        side for side in (answers.prediction, answers.probabilities) if side is not None and side.dtype.kind == "f"
    ]
    bad = [~np.isfinite(side).reshape(len(side), -1).all(axis=1) for side in sides]
    return float(np.any(bad, axis=0).mean()) if bad else 0.0


def _failures(outcome: _Outcome, policy: RobustnessPolicy) -> list[str]:
    what = _shown(outcome.name)
    if outcome.name != "noise":
        if policy.refusals == "report":
            return []
        if outcome.refusal:
            return [f"{what} values are refused: {outcome.refusal}"]
        return (
            [f"{outcome.no_answer:.1%} of the answers to {what} values are no numbers"] if outcome.no_answer > 0 else []
        )
    if outcome.refusal:
        return [f"rows with noise are refused: {outcome.refusal}"]
    found = []
    if outcome.flips > policy.max_flips:
        found.append(
            f"{outcome.flips:.1%} of the answers change under noise of {policy.noise:.0%} of the std; "
            f"the policy allows {policy.max_flips:.1%}"
        )
    if outcome.loss is not None and not outcome.loss <= policy.max_loss:
        found.append(f"the metric loses {outcome.loss:.4f} under noise; the policy allows {policy.max_loss:g}")
    if outcome.no_answer > 0:
        found.append(f"{outcome.no_answer:.1%} of the answers under noise are no numbers")
    return found


def _figures(outcomes: list[_Outcome]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for outcome in outcomes:
        figures[f"{outcome.name}_refused"] = float(bool(outcome.refusal))
        if not outcome.refusal:
            figures |= {f"{outcome.name}_flips": outcome.flips, f"{outcome.name}_no_answer": outcome.no_answer}
            if outcome.loss is not None:
                figures[f"{outcome.name}_loss"] = outcome.loss
    return figures


def _table(outcomes: list[_Outcome], labelled: LabelledMetric | None) -> ReportTable:
    metric = labelled.metric if labelled is not None else "metric"
    lines = []
    for outcome in outcomes:
        if outcome.refusal:
            lines.append((_shown(outcome.name), "refused", "", ""))
            continue
        loss = "" if outcome.loss is None else _amount(metric, outcome.loss)
        lines.append((_shown(outcome.name), f"{outcome.flips:.1%}", f"{outcome.no_answer:.1%}", loss))
    return ReportTable(
        ("disturbance", "answers changed", "answers that are no numbers", f"loss of {metric}"), tuple(lines)
    )


def _shown(name: str) -> str:
    return name.replace("out_of_range", "out-of-range")


def _amount(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric in RELATIVE_METRICS else f"{value:.4f}"


def _spread(values: Array) -> float:
    """The standard deviation of what is known of a column; of a tensor, over all its numbers."""
    numbers = values.astype(np.float64)
    known = numbers[np.isfinite(numbers)]
    return float(known.std()) if known.size else 0.0


def _within(numbers: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers in their column's type; whole ones no larger than it holds."""
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return np.where(np.isfinite(numbers), np.clip(numbers, limits.min, limits.max), numbers).astype(dtype)
    bounds = np.iinfo(dtype)
    return np.clip(np.round(numbers), max(bounds.min, -(2**53)), min(bounds.max, 2**53)).astype(dtype)
