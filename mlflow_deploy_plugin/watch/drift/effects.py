"""The effect of a drifted column on the predictions: the served version predicts rows
of the window twice, with the window's values of the column and with the reference's.

The values of the reference are drawn at random with a fixed seed. A row keeps its value
if the value is as frequent in the reference; other numbers are exchanged in the order
of their size. Therefore the relations to other columns remain, and without drift hardly
any prediction changes.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.promote.replay.traffic import arrays_of
from mlflow_deploy_plugin.serve.inference_log.tables import concat_tables
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, read_artifact
from mlflow_deploy_plugin.serve.runtime.explained import (
    Name,
    explained_numbers,
    explained_outputs,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array, sample_positions
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.watch.drift.references.rows import SEED, model_folder
from mlflow_deploy_plugin.watch.drift.sketches.columns import read_columns
from mlflow_deploy_plugin.watch.result import (
    Check,
    Finding,
    ModelVersion,
    WindowRequest,
    format_number,
)
from mlflow_deploy_plugin.watch.sequential.evidence import JudgedWindow
from mlflow_deploy_plugin.wrap.evaluation.dataset import own_columns

Sample = tuple[pa.Table, pa.Table]
"""Rows of the reference and of the window."""
_MOST_ROWS = 50_000
"""The maximum number of rows to predict for all columns of a window together."""
_MOST_COLUMNS = 50
_ALWAYS_ALARMS: tuple[Check, ...] = ("type", "presence", "criterion")
_NOUNS = {"probabilities": "probability", "scores": "score"}


@dataclass(frozen=True)
class Effect:
    """The effect of a column, with the fields of `Finding`."""

    effect: float
    effect_size: float
    effect_unit: str
    changed_classes: float | None = None


def with_effects(
    request: WindowRequest,
    version: ModelVersion,
    sample: Sample | None,
    in_segment: Callable[[Sample, str], Sample],
    findings: Sequence[Finding],
) -> tuple[Sequence[Finding], Sequence[str]]:
    """Return the findings, and a note if effects are unknown because the version cannot
    predict here. Alarms of input columns get their effect, and remain alarms unless the
    effect is below `min_effect`.

    Args:
        in_segment: returns the rows of a segment in the `sample`.
    """
    keys = dict.fromkeys((item.subject, item.segment) for item in findings if item.is_alarm)
    if not keys or sample is None or not version[0]:
        return findings, ()
    try:
        with model_folder(request.settings.state_dir(request.endpoint), *version) as folder:
            artifact = read_artifact(folder)
            inputs = {column.name for column in artifact.columns}
            if inputs.isdisjoint(column for column, segment in keys):
                return findings, ()
            hidden = inputs.intersection((*request.capture.drop, *request.capture.mask))
            if hidden:
                raise InvalidConfig(
                    f"capture.drop or capture.mask withholds {min(hidden)!r} from the log",
                )
            check_unit(artifact, request.min_effect)
            model = OnnxModel.load(folder)
    except OnnxserveError as error:
        return findings, (f"effects are unknown, so all alarms remain: {error.message}",)
    columns = [(column, segment) for column, segment in keys if column in model.schema.names]
    del columns[_MOST_COLUMNS:]
    effects = {
        (column, segment): measure_effect(
            model,
            *in_segment(sample, segment),
            column,
            _MOST_ROWS // len(columns),
        )
        for column, segment in columns
    }
    measured = [
        with_effect(item, effects.get((item.subject, item.segment)), request.min_effect)
        for item in findings
    ]
    return [_with_mean_effect(item, request.past) for item in measured], ()


def _with_mean_effect(finding: Finding, past: Sequence[JudgedWindow]) -> Finding:
    """Return a lasting shift with the mean of its effects in the windows since its
    alarm. Before the alarm, no effects are measured.
    """
    if finding.check != "shift" or finding.effect is None or not finding.since:
        return finding
    start = datetime.fromisoformat(finding.since)
    earlier = [
        window.evidence.effects[finding.key]
        for window in past
        if window.start >= start and finding.key in window.evidence.effects
    ]
    if not earlier:
        return finding
    mean = float(np.mean([*earlier, finding.effect]))
    return replace(finding, effect=mean, window_effect=finding.effect)


def with_effect(finding: Finding, effect: Effect | None, min_effect: float | None) -> Finding:
    """Return the finding. An alarm gets the effect, and does not remain an alarm if the
    effect is below `min_effect`, except for a changed type or a new or removed column.
    """
    if effect is None or not finding.is_alarm:
        return finding
    finding = replace(finding, **vars(effect))
    if not min_effect or effect.effect_size >= min_effect or finding.check in _ALWAYS_ALARMS:
        return finding
    size = format_number(effect.effect_size, digits=2)
    return replace(
        finding,
        state="no drift",
        reason=f"effect {size} on the {effect.effect_unit} is below alarms.min_effect "
        f"{min_effect:g}; {finding.reason}",
        since="",
        since_end="",
        since_range=None,
        in_a_row=0,
    )


def without_harm(
    findings: Sequence[Finding],
    unharmed: Collection[str],
) -> list[Finding]:
    """Return the findings. A drift without a sign of harm becomes `changed`: the column
    changes no prediction, or its segment is `unharmed`. Findings about types, rows,
    requirements, and missing, new or mostly distant values are themselves signs of
    harm.
    """
    return [
        replace(item, state="changed")
        if item.state == "drift"
        and item.check in ("distribution", "range", "shift")
        and not item.is_quality
        and (item.has_no_effect or item.segment in unharmed)
        else item
        for item in findings
    ]


def check_unit(artifact: Artifact, min_effect: float | None) -> None:
    """Raise InvalidConfig if the version cannot predict here, or if its predictions
    cannot have an effect of this size, and InvalidRequest if they are not numbers.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        raise InvalidConfig("the version has no ONNX form, and only an ONNX model predicts here")
    if not artifact.outputs:  # A model of the flavor onnx has no described outputs.
        return
    role = explained_outputs(artifact)[0].role
    if min_effect and min_effect >= 1 and role == "probabilities":
        raise InvalidConfig(
            f"min_effect {min_effect:g} is not a change of a probability, which the model "
            "predicts: a number below 1 is expected",
        )


def measure_effect(
    model: OnnxModel,
    reference: pa.Table,
    window: pa.Table,
    column: str,
    most_rows: int,
) -> Effect | None:
    """Return the effect of the column on at most `most_rows` rows of the window: that
    on the predicted number that changes most; of two classes, on the second. Return
    None if one of the tables lacks values, the model refuses the rows, or a prediction
    is not a number.
    """
    if not len(reference):
        return None
    window = window.take(sample_positions(len(window), most_rows, SEED))
    try:
        both = concat_tables([window.select([column]), reference.select([column])])
        place = window.column_names.index(column)
        rows = _restored_rows(read_columns(both)[0][column].values, len(window))
        values = both.column(column).take(pa.array(rows))
        names, before = _predict(model, window.set_column(place, column, values))
        now = _predict(model, window)[1]
    except (OnnxserveError, pa.ArrowException, KeyError):
        return None
    if not np.isfinite(now - before).all():
        return None
    sizes = np.abs(now - before).mean(axis=0)
    place = np.flatnonzero(np.isclose(sizes, sizes.max(), atol=1e-6))[-1]
    role = explained_outputs(model.artifact)[0].role
    unit = _NOUNS.get(role, "prediction")
    if len(names) > 1:
        unit += f" of {names[place]}"
    changed = None
    if role == "probabilities" and len(names) > 1:
        changed = float((before.argmax(axis=1) != now.argmax(axis=1)).mean())
    return Effect(float((now - before)[:, place].mean()), float(sizes[place]), unit, changed)


def _predict(model: OnnxModel, rows: pa.Table) -> tuple[list[Name], Array]:
    """Return the names of the predicted numbers, and the numbers, [N, K]."""
    columns = own_columns(model.artifact, arrays_of(rows, model.schema.names))
    return explained_numbers(model, model.schema.from_columns(columns))


def _restored_rows(values: Array, rows: int) -> Array:
    """Return the position in `values` of the value that each row gets, [rows] int64.
    The window has the first `rows` of the `values`, and the reference the others.
    """
    drawn = np.random.default_rng(SEED).integers(rows, len(values), rows)
    # As texts, because NaN is unequal to itself; as objects, because texts may be long.
    texts = np.array([*map(str, values.tolist())], object)
    positions = np.arange(rows)
    replaced = positions[_is_surplus(texts[:rows], texts[drawn])]
    inserted = drawn[_is_surplus(texts[drawn], texts[:rows])]
    if values.dtype.kind == "f":
        old = values[replaced]
        new = values[inserted]
        # A missing value is exchanged with any value: only one side has missing values.
        replaced = replaced[np.argsort(np.where(np.isnan(old), new, old))]
        inserted = inserted[np.argsort(np.where(np.isnan(new), old, new))]
    positions[replaced] = inserted
    return positions


def _is_surplus(values: Array, others: Array) -> Array:
    """Return a mask, [N] bool: True for a value beyond its number of occurrences in
    `others`, [N].
    """
    available = Counter(others.tolist())
    surplus = []
    for value in values.tolist():
        surplus.append(not available[value])
        available[value] -= available[value] > 0
    return np.array(surplus, bool)
