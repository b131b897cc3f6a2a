"""Predictions and labels from rows of the log, as classes or numbers, and notes on
skipped rows.

Labels and the predictions of a classifier are compared as text. If the model returns
numbers or booleans, 1, 1.0 and true are the same class. Labels are not compared if they
use other names than the model's classes ("yes" for 1). If only some labels are classes
that the model does not have, their rows count as wrong predictions.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotFound, Refused
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, WindowRows
from mlflow_deploy_plugin.serve.inference_log.tables import with_both_names
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output, read_artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import as_key, as_text
from mlflow_deploy_plugin.watch.drift.references.rows import model_folder
from mlflow_deploy_plugin.watch.drift.sketches.columns import as_floats, decoded, type_family
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.statistics.metrics import MOST_CLASSES, ClassPredictions

_LARGEST = 1e9  # Larger class weights are not normalised to probabilities.
_FEW_ROWS = 5
_FEW_SHARE = 0.05
_SHOWN = 6
_SHOWN_FILES = 3


@dataclass(frozen=True, eq=False)
class Predictions:
    """N rows of one version.

    Attributes:
        classified, numbers: a classifier's predictions, or a regressor's predictions,
            [N] float64, NaN if missing.
        truth: the labels, [N]: int64 indices into a classifier's classes, or -1; a
            regressor's float64 values, or NaN.
        unusable: the number of labels that are not numbers although the model returns
            numbers.
        label_mismatch: the reason why labels and predictions cannot be compared; empty
            if they can.
    """

    classified: ClassPredictions | None
    numbers: Array | None
    truth: Array
    unusable: int = 0
    label_mismatch: str = ""

    @property
    def is_labelled(self) -> Array:
        """A mask, [N] bool: True for a row with a label."""
        if self.classified is not None:
            return self.truth >= 0
        return np.isfinite(self.truth)

    def notes(self) -> Iterator[str]:
        """Yield notes on labels and labelled rows that are skipped, and on classes that
        the model does not have.
        """
        if self.unusable:
            yield f"{self.unusable:,} labels are not numbers and are skipped"
        if self.numbers is not None:
            unanswered = int((self.is_labelled & ~np.isfinite(self.numbers)).sum())
            if unanswered:
                yield f"{unanswered:,} labelled rows have a non-numeric answer and are skipped"
        if self.classified is not None and self.classified.unknown and not self.label_mismatch:
            class_count = len(self.classified.classes) - self.classified.unknown
            text = f"the model does not have ({quote_names(self.classified.classes[class_count:])})"
            yield (
                f"{int((self.truth >= class_count).sum()):,} labels are classes that {text}; each "
                "counts as a wrong answer"
            )


def read_predictions(
    table: pa.Table,
    artifact: Artifact | None,
    masked: Collection[str],
) -> Predictions | Refused:
    """Return the predictions and labels from rows of the log with summarised lists.
    Without an artifact, the column types distinguish labels from numbers. `masked`
    columns contain hashes, which are not used as answers.
    """
    hashed = [name for name in table.column_names if name in with_both_names(masked, artifact)]
    columns = _Columns(table.drop_columns(hashed), artifact)
    classes = artifact.classes if artifact else ()
    labels = columns.labels()
    probabilities = columns.probabilities()
    if labels is None and probabilities is not None and classes:
        indices = np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1)
        labels = pa.array(np.array(classes, dtype=object)[indices].tolist())
    if labels is not None:
        return _classified(columns.table, labels, probabilities, classes)
    numbers = columns.numbers()
    if numbers is None:
        answers = [
            name
            for name in columns.table.column_names
            if name.startswith((f"{PREDICTION}.", OUTPUT_PREFIX))
        ]
        reason = "the log has no column with a single answer per row"
        if hashed:
            reason += f": capture.mask replaces {', '.join(hashed)} with hashes"
        elif answers:
            reason += f": it has {quote_names(answers)}"
        return Refused(reason)
    truth = as_numbers(columns.table, LABEL_NUMBER)
    unusable = 0
    if LABEL in columns.table.column_names:
        unusable = len(table) - columns.table.column(LABEL).null_count
        unusable = max(unusable - int(np.isfinite(truth).sum()), 0)
    return Predictions(None, numbers, truth, unusable)


class _Columns:
    """The answer columns of a table, by role."""

    def __init__(self, table: pa.Table, artifact: Artifact | None) -> None:
        self.table = table
        self._outputs = artifact.outputs if artifact else ()
        self._prediction = artifact.prediction if artifact else ()
        self._classes = artifact.classes if artifact else ()

    def labels(self) -> pa.Array | None:
        """Return the predicted labels, [N]: the label output, or a prediction of a type
        without fractions. Return None if the model returns no labels, or if several
        columns may be labels.
        """
        for output in self._outputs:
            if output.role != "label":
                continue
            base = self._base(output)
            name = base if base in self.table.column_names else f"{base}.0"
            column = self._named(name)
            if column is not None:
                if _may_be_label(column.type) or pa.types.is_floating(column.type):
                    return column
                return None
        if any(output.role == "probabilities" for output in self._outputs) and self._classes:
            return None
        if PREDICTION in self.table.column_names or self._outputs:
            names = [PREDICTION]
        else:  # If outputs are not described, the output without fractions is the label.
            names = [name for name in self.table.column_names if name.startswith(OUTPUT_PREFIX)]
        columns = []
        for name in names:
            column = self._named(name)
            if column is not None and _may_be_label(column.type):
                columns.append(column)
        return columns[0] if len(columns) == 1 else None

    def probabilities(self) -> Array | None:
        """Return the class probabilities, [N, C] float64, in the order of the classes;
        None if the log does not have them.
        """
        for output in self._outputs:
            if output.role != "probabilities":
                continue
            parts = self._parts(self._base(output))
            if len(parts) == 1 and len(self._classes) == 2:
                return np.stack(
                    [1 - parts[0], parts[0]],
                    axis=1,
                )
            if len(parts) > 1 and len(parts) == len(self._classes):
                return np.stack(parts, axis=1)
        return None

    def numbers(self) -> Array | None:
        """Return the predicted numbers, [N] float64: the prediction, or the only output
        with one number per row; None if there is none, or several.
        """
        if self._named(PREDICTION) is not None:
            return as_numbers(self.table, PREDICTION)
        parts_by_output = [self._parts(self._base(output)) for output in self._outputs]
        columns = [parts[0] for parts in parts_by_output if len(parts) == 1]
        return columns[0] if len(columns) == 1 else None

    def _base(self, output: Output) -> str:
        """Return the name of the output's column, or of its columns without their
        positions.
        """
        is_prediction = self._prediction == (output.name,) and PREDICTION in self.table.column_names
        if is_prediction:
            return PREDICTION
        return OUTPUT_PREFIX + output.name

    def _named(self, name: str) -> pa.Array | None:
        """Return the decoded column; None if the table does not have it."""
        if name in self.table.column_names:
            return decoded(self.table.column(name)).combine_chunks()
        return None

    def _parts(self, base: str) -> list[Array]:
        """Return the columns of the vector `base` in order, or the column `base` itself
        if it is not a vector.
        """
        if base in self.table.column_names:
            return [as_numbers(self.table, base)]
        pattern = re.compile(re.escape(base) + r"\.(\d+)$")
        matches = filter(None, map(pattern.match, self.table.column_names))
        positions = sorted(int(match[1]) for match in matches)
        return [as_numbers(self.table, f"{base}.{position}") for position in positions]


def _classified(
    table: pa.Table,
    labels: pa.Array,
    probabilities: Array | None,
    classes_in_files: tuple[object, ...],
) -> Predictions:
    """Return the predictions of a classifier.

    Args:
        labels: the predicted labels, [N].
        probabilities: [N, C], in the order of `classes_in_files`.
        classes_in_files: the classes in the model's files; may be empty.
    """
    is_text = pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)
    name_of = as_text if is_text else as_key
    predicted = _names(labels, name_of)
    truth = pa.nulls(len(table), pa.string())
    if LABEL in table.column_names:
        truth = _names(table.column(LABEL).combine_chunks(), name_of)
        # If the classes may be numbers, the labels in `LABEL_NUMBER` have precedence.
        if not is_text and LABEL_NUMBER in table.column_names:
            numbers = table.column(LABEL_NUMBER).combine_chunks()
            truth = pc.if_else(pc.is_valid(numbers), _names(numbers, name_of), truth)
    in_files = [name for name in map(name_of, classes_in_files) if name is not None]
    classes = _Classes.of(in_files, predicted, truth)
    called = _class_indices(predicted, classes.indices)
    true = np.minimum(
        _class_indices(truth, classes.indices),
        len(classes.names) - 1,
    )
    # The probabilities of all classes, divided by their sum, unless one is invalid.
    ordered = None
    if probabilities is not None and in_files:
        is_valid = (probabilities >= 0) & (probabilities <= _LARGEST)
        probabilities = np.where(is_valid, probabilities, np.nan)
        total = probabilities.sum(axis=1, keepdims=True)
        ordered = np.zeros((len(total), len(classes.names)))
        ordered[:, classes.places(in_files)] = probabilities / np.where(total > 0, total, 1)
        if not np.isfinite(ordered).all():
            ordered = None
    mismatch = ""
    if _is_other_alphabet(called, true, classes.places(classes.of_model), bool(in_files)):
        mismatch = (
            f"the labels are {quote_names(_distinct_names(truth))}, the model's classes are "
            f"{quote_names(classes.of_model)}; they must be the same"
        )
    return Predictions(
        ClassPredictions(called, ordered, classes.names, classes.unknown),
        None,
        true,
        label_mismatch=mismatch,
    )


@dataclass(frozen=True)
class _Classes:
    """The classes of a model and of its labels.

    Attributes:
        of_model: the classes in the model's files and in its answers.
        names: the classes whose probabilities are known, then `unknown` classes of
            labels. They are limited, because each takes memory for every row.
        indices: the index of all classes, including those beyond the limit.
    """

    of_model: list[str]
    names: tuple[str, ...]
    unknown: int
    indices: dict[str, int]

    @classmethod
    def of(
        cls,
        in_files: Sequence[str],
        predicted: pa.Array,
        truth: pa.Array,
    ) -> "_Classes":
        """Return the classes in the model's files, in its answers and in the labels.
        Without classes in the files, all are classes of the model.
        """
        of_model = _ascending({*in_files, *_distinct_names(predicted)})
        only_labels = _ascending({*_distinct_names(truth)} - {*of_model})
        names = [*of_model, *only_labels]
        unknown = min(len(only_labels), MOST_CLASSES + 1)
        if not in_files:
            # Labels are classes of the model, because these answers may not include
            # all classes.
            names = _ascending(names)
            unknown = 0
        indices = {name: index for index, name in enumerate(names)}
        if in_files:
            names = names[: len(of_model) + unknown]
        return cls(of_model, tuple(names), unknown, indices)

    def places(self, names: Sequence[str]) -> Array:
        """Return the indices of the classes, [C] int64."""
        return np.array([self.indices[name] for name in names], np.int64)


def _is_other_alphabet(called: Array, true: Array, of_model: Array, has_classes: bool) -> bool:
    """Return True if the labels use other class names than the model: no label is a
    class of the model, or some labels are unknown classes and a predicted class never
    occurs as a label.

    Args:
        called, true: the predicted classes and the labels, [N] int64 indices.
        of_model: the indices of the model's classes, [C].
        has_classes: False if only predicted classes are known.
    """
    labelled = true >= 0
    is_foreign = labelled & ~np.isin(true, of_model)
    if not is_foreign.any():
        return False
    if is_foreign.sum() == labelled.sum() and (has_classes or labelled.sum() >= _FEW_ROWS):
        return True
    if not has_classes:
        return False
    without_labels = of_model[~np.isin(of_model, true)]
    # With many classes, rare classes lack labels in most windows, so the minimum is
    # also a share of the rows.
    least = _FEW_ROWS
    if len(of_model) > 2:
        least = max(_FEW_ROWS, _FEW_SHARE * labelled.sum())
    foreign = is_foreign.sum()
    never_confirmed = (labelled & np.isin(called, without_labels)).sum()
    return bool(min(foreign, never_confirmed) >= least)


def quote_names(names: Sequence[str]) -> str:
    """Return the names quoted, sorted and separated by commas. If there are many names,
    only the first are listed.
    """
    listed = ", ".join(repr(name) for name in _ascending(names)[:_SHOWN])
    if len(names) > _SHOWN:
        return f"{listed} and {len(names) - _SHOWN} more"
    return listed


def _may_be_label(kind: pa.DataType) -> bool:
    """Return True if the type has no fractions."""
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_text or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind))


def _names(
    values: pa.Array,
    name_of: Callable[[object], str | None],
) -> pa.Array:
    """Return the values as text, [N]. `name_of` is called once per distinct value."""
    coded = values.dictionary_encode()
    names = pa.array(
        list(map(name_of, coded.dictionary.to_pylist())),
        pa.string(),
    )
    return names.take(coded.indices)


def _distinct_names(names: pa.Array) -> list[str]:
    return [name for name in pc.unique(names).to_pylist() if name is not None]


def _ascending(names: Iterable[str]) -> list[str]:
    """Return the names in the order of their numbers; as texts, if one is no number."""
    values = list(names)
    try:
        return sorted(values, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(values)


def _class_indices(names: pa.Array, index_of: dict[str, int]) -> Array:
    """Return the index of the class in each row, [N] int64; -1 for a missing name."""
    codes = pc.index_in(
        names,
        value_set=pa.array(list(index_of), pa.string()),
    )
    return np.asarray(pc.fill_null(codes, -1)).astype(np.int64)


def as_numbers(table: pa.Table, name: str) -> Array:
    """Return a column as [N] float64, NaN if a value is missing or the column is not
    numeric.
    """
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    column = table.column(name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if type_family(column.type) != "number":
        return np.full(len(table), np.nan)
    return as_floats(column)


def version_artifact(request: WindowRequest, model: str, version: str) -> Artifact | None:
    """Return the version's description of its outputs; None if its files no longer
    exist.
    """
    try:
        with model_folder(request.settings.state_dir(request.endpoint), model, version) as folder:
            return read_artifact(folder)
    except (InvalidArtifact, NotFound):
        return None


def row_notes(rows: WindowRows, log: InferenceLog) -> Iterator[str]:
    """Yield notes on rows of other versions, on a sample of the rows, and on files that
    cannot be read.
    """
    for other, count in rows.other_versions.items():
        yield f"{count:,} rows in the window were answered by {other} and are skipped"
    if rows.is_sampled:
        yield f"the window has about {rows.rows:,} rows, of which {len(rows.table):,} are judged"
    yield from unreadable_notes(log)


def unreadable_notes(log: InferenceLog) -> Iterator[str]:
    """Yield notes on the first unreadable files of the log, and a note on the number of
    further unreadable files.
    """
    for path in sorted(log.unreadable)[:_SHOWN_FILES]:
        yield f"{path} cannot be read and was skipped: {log.unreadable[path]}"
    more = len(log.unreadable) - _SHOWN_FILES
    if more > 0:
        yield f"{more:,} more files cannot be read and were skipped"
