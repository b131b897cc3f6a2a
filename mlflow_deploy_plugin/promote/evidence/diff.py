"""The comparison of two versions of a registered model: their records, and their
predictions for the example rows.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, Refused
from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.promote.evidence.record import VersionRecord, read_record
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.shadow_compare import compare_outputs

Value = str | float | None
Trend = Literal["better", "worse", ""]

_HIGHER_IS_BETTER = frozenset(("accuracy", "auc", "f1", "precision", "r2", "recall", "score"))
_LOWER_IS_BETTER = frozenset(("brier", "error", "logloss", "loss", "mae", "mape", "mse", "rmse"))
"""The words in the name of a metric, such as `val_loss`, that have a known direction. A
lower value is better if the name has words of both sets, such as `brier_score`.
"""
_NEGATED = re.compile(rf"\bneg .*\b({'|'.join(sorted(_LOWER_IS_BETTER))})\b|\bd2 .*\bscore\b")
"""The words of scikit-learn's negated errors and D² scores, such as `neg log loss`, for
which higher is better.
"""
_TIMES = frozenset(("duration", "latency", "ms", "seconds", "time", "us"))
_TRAINING = frozenset(("train", "training"))
_MOST_CHANGES = 3


@dataclass(frozen=True)
class DiffRow:
    """A fact about two versions. The value of a version without the fact is None.

    Attributes:
        section: `timings` for a duration, which differs even between equal versions.
        trend: empty if the values are equal in four digits, or if neither direction is
            known to be better.
    """

    section: str
    name: str
    before: Value
    after: Value
    is_changed: bool
    trend: Trend = ""

    @property
    def difference(self) -> float | None:
        """The number by which the value has grown; None unless both values are numbers.
        True and False are not.
        """
        if isinstance(self.before, str | bool | None) or isinstance(self.after, str | bool | None):
            return None
        return self.after - self.before

    @property
    def change(self) -> str:
        """Return the name with both values, such as `r2 0.977 → 0.887`."""
        name = self.name if self.section == "metrics" else f"{self.section} {self.name}"
        return f"{name} {_short(self.before)} → {_short(self.after)}"


@dataclass(frozen=True)
class OutputChange:
    """The number of example rows with another output, and the largest absolute
    difference of floats, or None.
    """

    output: str
    rows: int
    changed_rows: int
    largest: float | None


@dataclass(frozen=True)
class VersionDiff:
    """The comparison of two versions.

    Attributes:
        before: the address models:/NAME/VERSION of the first version.
        after: the address of the second version.
        notes: lines about copies and missing parts.
        predictions: the changes of the outputs, or the reason why no predictions are
            compared.
        disagreement: the share of rows with different answers, by `shadow_compare.py`:
            of the example rows, otherwise of the gate's back-test; None if unknown.
    """

    before: str
    after: str
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...]
    predictions: tuple[OutputChange, ...] | Refused = ()
    disagreement: float | None = None

    @property
    def sentence(self) -> str:
        """Return the comparison in words, such as `version 4 is worse: r2 0.977 →
        0.887; 97 % of the rows are answered differently`.
        """
        judged = [row for row in self.rows if row.trend]
        # A better metric of the training rows may be due to overfitting.
        held_out = [row for row in judged if _TRAINING.isdisjoint(_words(row.name))]
        parts = []
        for trend in ("worse", "better"):
            changes = [row.change for row in held_out or judged if row.trend == trend]
            if len(changes) > _MOST_CHANGES:
                changes[_MOST_CHANGES:] = [f"{len(changes) - _MOST_CHANGES} more"]
            if changes:
                parts.append(f"{trend}: {', '.join(changes)}")
        verdict = "; ".join(parts) or "neither better nor worse by its recorded metrics"
        text = f"version {self.after.rpartition('/')[2]} is {verdict}"
        if self.disagreement is not None:
            text += f"; {100 * self.disagreement:.3g} % of the rows are answered differently"
        return text


def diff_versions(before: str, after: str) -> VersionDiff:
    """Compare the versions that two URIs select, with MLflow's client.

    Raises InvalidConfig if a URI does not select a registered version or the models
    differ, NotFound, and RegistryUnavailable.
    """
    diff = compare(read_record(before), read_record(after))
    with temporary_folder("onnxserve-diff-") as temporary:
        old = download(diff.before, temporary / "0")
        new = download(diff.after, temporary / "1")
        examples = [new / INPUT_EXAMPLE, old / INPUT_EXAMPLE]
        example = next((file for file in examples if file.is_file()), None)
        if example is None:
            reason = "the versions have no example rows; log a model with input_example"
            return replace(diff, predictions=Refused(reason))
        body = example.read_bytes()
        try:
            return _compare_outputs(diff, OnnxModel.load(old), OnnxModel.load(new), body)
        except OnnxserveError as error:
            reason = f"the predictions for the example rows cannot be compared: {error.message}"
            return replace(diff, predictions=Refused(reason))


def compare(before: VersionRecord, after: VersionRecord) -> VersionDiff:
    """Compare two records without running a model. Raises InvalidConfig for versions of
    different models.
    """
    if before.name != after.name:
        raise InvalidConfig(
            f"{before.name} and {after.name} are different models; compare two versions of the "
            "same registered model"
        )
    old_facts = _facts(before)
    new_facts = _facts(after)
    rows: list[DiffRow] = []
    for section in old_facts:
        for name in dict.fromkeys([*old_facts[section], *new_facts[section]]):
            old_value = _plain(old_facts[section].get(name))
            new_value = _plain(new_facts[section].get(name))
            if old_value is None and new_value is None:
                continue
            is_time = section in ("metrics", "gate") and not _TIMES.isdisjoint(_words(name))
            row = DiffRow(
                section="timings" if is_time else section,
                name=name,
                before=old_value,
                after=new_value,
                is_changed=repr(old_value) != repr(new_value),  # The texts of two NaN are equal.
            )
            rows.append(replace(row, trend=_find_trend(row)))
    rows.sort(key=lambda row: row.section == "timings")  # The sort is stable.
    diff = VersionDiff(before.uri, after.uri, tuple(rows), (*_notes(before), *_notes(after)))
    if after.gate.against != before.uri:
        return diff
    figures = {check.name: check.figures for check in after.gate.checks}
    return replace(diff, disagreement=figures.get("backtest", {}).get("disagreement"))


def _notes(record: VersionRecord) -> Iterator[str]:
    """Yield the origin of a copy, the version that the gate judged, and the reason for
    each missing part.
    """
    if record.original:
        yield f"{record.uri} is a copy of {record.original}"
    if record.gate.judged not in ("", record.uri):
        yield f"the gate report of {record.uri} is about {record.gate.judged}"
    for part, reason in record.missing.items():
        yield f"{record.uri}, {part}: {reason}"


def _facts(record: VersionRecord) -> dict[str, Mapping[str, Value]]:
    """Return the comparable facts about a version by section and name."""
    provenance = record.provenance
    gate: dict[str, Value] = {}
    if record.gate.judged:
        gate["state"] = record.gate.status.state
        gate |= {check.name: check.state for check in record.gate.checks}
        for check in record.gate.checks:
            gate |= {f"{check.name} {name}": value for name, value in check.figures.items()}
    parity = dict(record.section.get("parity", {}))
    for output in parity.pop("outputs", ()):
        own_name = output["name"]
        parity |= {f"{own_name} {name}": output[name] for name in output if name != "name"}
    return {
        "metrics": record.run.user_metrics,
        "gate": gate,
        "parameters": record.run.params,
        "data": record.datasets,
        "code": {
            "algorithm": provenance.get("algorithm"),
            "git commit": record.git_commit or None,
            "uncommitted changes": provenance.get("git_dirty"),
        },
        "signature": record.signature,
        "parity": parity,
        "environment": {
            "python": provenance.get("python_version"),
            **{f"{name} (serving)": version for name, version in record.requirements.items()},
            **{f"{name} (training)": version for name, version in record.environment.items()},
        },
        "graph": record.graph,
    }


def _find_trend(row: DiffRow) -> Trend:
    """Return whether the second version is better, from the direction of a metric or
    the state of a gate's check.
    """
    has_both_states = row.section == "gate" and bool(row.before) and bool(row.after)
    if has_both_states and row.is_changed and "failed" in (row.before, row.after):
        return "worse" if row.after == "failed" else "better"
    difference = row.difference or 0.0
    if row.section != "metrics" or not abs(difference) > 0:
        return ""
    if _short(row.before) == _short(row.after):
        return ""
    words = _words(row.name)
    is_lower_better = not _LOWER_IS_BETTER.isdisjoint(words)
    if _NEGATED.search(" ".join(words)):
        is_lower_better = False
    elif not is_lower_better and _HIGHER_IS_BETTER.isdisjoint(words):
        return ""
    return "better" if (difference < 0) == is_lower_better else "worse"


def _short(value: Value) -> str:
    """Return a text, or a number with four digits."""
    if not isinstance(value, float):
        return str(value)
    return np.format_float_positional(value, 4, unique=False, fractional=False, trim="-")


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


def _plain(value: object) -> Value:
    """Return a value of the MLmodel file, which may be a list or a date, as a text
    unless it is a text or a number.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def _compare_outputs(diff: VersionDiff, old: OnnxModel, new: OnnxModel, body: bytes) -> VersionDiff:
    """Return the comparison with that of the responses to the same request."""
    old_outputs = old.run(mlflow_protocol.decode(JSON, body, old.schema))
    new_outputs = new.run(mlflow_protocol.decode(JSON, body, new.schema))
    changes = []
    for name, array in old_outputs.items():
        agreement = compare_outputs(old.artifact, {name: array}, new.artifact, new_outputs)
        changed_rows = int(np.count_nonzero(agreement.differences))
        largest = agreement.largest if agreement.are_numbers else None
        changes.append(OutputChange(name, len(agreement.differences), changed_rows, largest))
    answers = compare_outputs(old.artifact, old_outputs, new.artifact, new_outputs)
    return replace(diff, predictions=tuple(changes), disagreement=float(np.mean(~answers.same)))
