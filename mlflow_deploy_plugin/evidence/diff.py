"""The comparison of two versions of a registered model: their records, and their predictions for the example rows."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError, Refused
from mlflow_deploy_plugin.evidence.record import VersionRecord, read_record
from mlflow_deploy_plugin.messages import join_names
from mlflow_deploy_plugin.registry.model_files import download
from mlflow_deploy_plugin.runtime import INPUT_EXAMPLE, PYTHON_FUNCTION, OnnxModel, compare_outputs
from mlflow_deploy_plugin.statedir.files import temporary_folder

Value = str | float | None
_FIGURES = ("agreement", "beyond_tolerance", "max_absolute_error", "max_relative_error")
"""The compared figures of the parity of an output."""


@dataclass(frozen=True)
class DiffRow:
    """A fact about two versions. The value of a version without the fact is None."""

    section: str
    name: str
    before: Value
    after: Value
    is_changed: bool


@dataclass(frozen=True)
class OutputChange:
    """The number of example rows with another output, and the largest absolute difference of floats, or None."""

    output: str
    rows: int
    changed_rows: int
    largest: float | None


@dataclass(frozen=True)
class VersionDiff:
    """The comparison of two versions, with their addresses models:/NAME/VERSION.

    `notes` are lines about copies and missing parts. `predictions` may be the reason why they are not compared.
    """

    before: str
    after: str
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...]
    predictions: tuple[OutputChange, ...] | Refused


def diff_versions(before: str, after: str) -> VersionDiff:
    """Compare the versions that two URIs select, with MLflow's client. Raises like `compare` and `read_record`."""
    records = read_record(before), read_record(after)
    diff = compare(*records)
    if changed := [row.name for row in diff.rows if row.section == "signature" and row.is_changed]:
        return replace(diff, predictions=Refused(f"the signatures differ: {join_names(changed)}"))
    return replace(diff, predictions=_compare_predictions(*records))


def compare(before: VersionRecord, after: VersionRecord) -> VersionDiff:
    """Compare two records without running a model. Raises InvalidConfig for versions of different models."""
    if before.name != after.name:
        names = f"{before.name} and {after.name}"
        raise InvalidConfig(f"{names} are different models; compare two versions of the same registered model")
    old, new = _facts(before), _facts(after)
    rows = []
    for section in old:
        for name in dict.fromkeys([*old[section], *new[section]]):
            values = old[section].get(name), new[section].get(name)
            if values != (None, None):  # The texts of two NaN are equal.
                rows.append(DiffRow(section, name, *values, is_changed=repr(values[0]) != repr(values[1])))
    notes = [f"{side.uri} is a copy of {side.original}" for side in (before, after) if side.original]
    notes += [f"{side.uri}, {part}: {reason}" for side in (before, after) for part, reason in side.missing.items()]
    hint = f"`onnxserve diff {before.uri} {after.uri}` compares the predictions for the example rows"
    return VersionDiff(before.uri, after.uri, tuple(rows), tuple(notes), Refused(hint))


def _facts(record: VersionRecord) -> dict[str, Mapping[str, Value]]:
    """Return the comparable facts about a version by section and name."""
    run, graph, gate, parity = record.run, record.graph, record.gate, record.parity
    provenance, checks = record.section.get("provenance", {}), gate.checks if gate else ()
    facts: dict[str, Mapping[str, Value]] = {
        "data": record.datasets,
        "code": {"git commit": record.git_commit or None, "uncommitted changes": provenance.get("git_dirty")},
        "parameters": run.params if run else {},
        "metrics": run.metrics if run else {},
        "signature": record.signature,
        "graph": {},
        "environment": {
            "flavor": record.flavor or None,
            "python": provenance.get("python_version"),
            **{f"{name} (serving)": version for name, version in record.requirements.items()},
            **{f"{name} (training)": version for name, version in record.environment.items()},
        },
        "parity": {name: parity.get(name) for name in ("state", "rows", "problem", "unproven")}
        | {f"{output.get('name')} {key}": output.get(key) for output in parity.get("outputs", ()) for key in _FIGURES},
        "gate": {
            "state": gate.status.state if gate else None,
            "compared with": (gate.against if gate else "") or None,
            **{check.name: check.state for check in checks},
            **{f"{check.name} {name}": value for check in checks for name, value in check.figures.items()},
        },
    }
    if graph is not None:
        facts["graph"] = {
            "bytes": graph.size_bytes,
            "values in initializers": graph.parameters,
            "IR version": graph.ir_version,
            **{f"opset {domain}": version for domain, version in graph.opsets.items()},
            **{f"operator {name}": count for name, count in graph.operators.items()},
        }
    return facts


def _compare_predictions(before: VersionRecord, after: VersionRecord) -> tuple[OutputChange, ...] | Refused:
    """Compare the predictions for the example rows of the later version or, without an example, of the earlier."""
    records = before, after
    if codes := [record.uri for record in records if record.flavor == PYTHON_FUNCTION]:
        return Refused(f"{codes[0]} has no ONNX form, and its own code is not run")
    with ExitStack() as stack:
        temporary = [stack.enter_context(temporary_folder("onnxserve-diff-")) for _ in records]
        folders = [download(record.uri, folder) for record, folder in zip(records, temporary, strict=True)]
        examples = [file for folder in reversed(folders) if (file := folder / INPUT_EXAMPLE).is_file()]
        if not examples:
            return Refused("the versions have no example rows; log a model with input_example")
        body = examples[0].read_bytes()
        try:
            old, new = (OnnxModel.load(folder) for folder in folders)
            had, has = (model.run(protocols.mlflow.decode(protocols.JSON, body, model.schema)) for model in (old, new))
            compared = {name: compare_outputs(old.artifact, {name: had[name]}, new.artifact, has) for name in had}
        except OnnxserveError as error:
            return Refused(f"the predictions for the example rows cannot be compared: {error.message}")
    changes = []
    for name, rows in compared.items():
        is_changed = rows.differences != 0 if rows.differences.size else ~rows.same
        largest = float(rows.differences.max()) if rows.differences.size else None
        changes.append(OutputChange(name, len(rows.same), int(is_changed.sum()), largest))
    return tuple(changes)
