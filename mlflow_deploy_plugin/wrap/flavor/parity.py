"""Parity: the comparison of the saved model with the original on at least 1,000 rows,
before the model is logged.

The saved model runs as for a request (`OnnxModel`). Rows that the original refuses are
counted, but not compared.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue

from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidConfig,
    ParityError,
    SchemaMismatch,
)
from mlflow_deploy_plugin.serve.runtime.agreement import Agreement, Tolerance, compare
from mlflow_deploy_plugin.serve.runtime.artifact import Output, ParityState
from mlflow_deploy_plugin.serve.runtime.feeds import Array, concatenate_feeds, slice_feeds
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert import comparison
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.comparison import (
    ABSOLUTE,
    OF_PROBABILITY,
    RELATIVE,
    TIE_MARGIN,
)
from mlflow_deploy_plugin.wrap.convert.converted import (
    MAX_VALUES,
    BoundaryValues,
    ConvertedModel,
    OriginalModel,
    call_original,
)

Answers = dict[str, Array]

WORST_ROWS = 5
_SMALL_BATCHES = ((1, 16), (2, 16))  # (batch size, number of rows)
_INPUT_WIDTH = 120
_PLAIN_ENTRIES = 8  # entries of an array in the worst rows
_MAX_METRIC_NAME = 100
_EXACT_INTEGERS = 2**24  # The graph's 32-bit floats represent smaller integers exactly.
_CLOSE = 0.1
"""A share of the tolerance. If an error exceeds this share, other rows may exceed the
tolerance.
"""

_TOLERANCES = {
    "label": f"equal; rows with a margin below {TIE_MARGIN:g} are ties",
    "probabilities": (
        f"{OF_PROBABILITY:g} of the probability, at most {ABSOLUTE:g}, for sums in 32-bit floats"
    ),
    "values": (
        f"{RELATIVE:g} of the value + {RELATIVE:g} of the spread of the predictions, for sums in "
        "32-bit floats"
    ),
}


@dataclass
class OutputFigures:
    """The figures of an output. Ties count as equal in `agreement`, and are excluded
    from `max_excess`.
    """

    name: str
    role: str
    tolerance: str
    agreement: float = 1.0
    max_absolute_error: float = 0.0
    max_relative_error: float = 0.0
    max_excess: float = 0.0
    beyond_tolerance: int = 0
    ties: int = 0

    def add(self, rows: Agreement, relative: Array, ties: Array) -> None:
        """Add the errors of [N] rows, except those of ties.

        Args:
            rows: the comparison of each row with the original's prediction.
            relative: the relative error of each row, [N].
            ties: [N] booleans, True for a tie.
        """
        decided = ~ties
        self.beyond_tolerance += int((decided & ~rows.same).sum())
        self.ties += int(ties.sum())
        self.max_absolute_error = _larger(self.max_absolute_error, rows.differences[decided])
        self.max_relative_error = _larger(self.max_relative_error, relative[decided])
        self.max_excess = _larger(self.max_excess, rows.excess[decided])


def _larger(largest: float, errors: Array) -> float:
    return max(largest, float(errors.max(initial=0)))


class Doubts(NamedTuple):
    """A sort key for the ONNX forms of a model: the best form has the smallest key.

    Attributes:
        is_unproven: True if the form cannot predict, or if there are too few rows.
        beyond_tolerance: the number of errors beyond the tolerance.
        ties: the number of ties.
        is_close: True if an error exceeds `_CLOSE` of the tolerance.
    """

    is_unproven: bool
    beyond_tolerance: int
    ties: int
    is_close: bool


@dataclass(frozen=True)
class ParityReport:
    """The content of parity.json.

    Attributes:
        sources: number of rows by source; batches of 1 and 2 rows are checked in
            addition.
        refused_by_original: number of generated rows by source that were dropped
            because the original refuses them.
        refused_columns: the columns, by source, for which the original refuses every
            value of the source.
        left_out: the errors of failed generators, by name; the remaining rows of a
            failed generator are not compared.
        problem: the reason if the saved model could not predict.
        unproven: the reason if there are too few rows for a proof.
        limit: how far the numbers of the proof reach if rounding decides farther away.
    """

    state: ParityState
    rows: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    refused_by_original: dict[str, int] = field(default_factory=dict)
    refused_columns: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)
    outputs: list[OutputFigures] = field(default_factory=list)
    worst_rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    unproven: str = ""
    repair: str = ""
    limit: str = ""

    @property
    def beyond_tolerance(self) -> int:
        return sum(output.beyond_tolerance for output in self.outputs)

    @property
    def doubts(self) -> Doubts:
        return Doubts(
            is_unproven=bool(self.problem or self.unproven),
            beyond_tolerance=self.beyond_tolerance,
            ties=sum(output.ties for output in self.outputs),
            is_close=any(output.max_excess > _CLOSE for output in self.outputs),
        )

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON, without empty entries. Infinite errors are
        strings.
        """

        def to_entries(fields: list[tuple[str, object]]) -> dict[str, object]:
            entries: dict[str, object] = {}
            for name, value in fields:
                if isinstance(value, float) and not np.isfinite(value):
                    entries[name] = str(value)
                elif value not in ("", [], {}):
                    entries[name] = value
            return entries

        return asdict(self, dict_factory=to_entries)

    def figures(self) -> dict[str, object]:
        """Return a subset of the report for the MLmodel file."""
        short = self.as_dict()
        return {
            name: short[name]
            for name in ("state", "rows", "repair", "limit", "problem", "unproven", "outputs")
            if name in short
        }

    def metrics(self) -> dict[str, float]:
        """Return the metrics for the MLflow run, with names that MLflow accepts."""
        figures = {
            "onnxserve.parity.rows": float(self.rows),
            "onnxserve.parity.beyond_tolerance": self.beyond_tolerance,
        }
        for output in self.outputs:
            name = re.sub(r"[^\w\-. ]", "_", output.name)[:_MAX_METRIC_NAME]
            prefix = f"onnxserve.parity.{name}"
            figures[f"{prefix}.agreement"] = output.agreement
            if output.role != "label":
                figures[f"{prefix}.max_absolute_error"] = output.max_absolute_error
                figures[f"{prefix}.max_relative_error"] = output.max_relative_error
        return figures


@dataclass(frozen=True)
class RowGroup:
    """Rows of one source.

    Attributes:
        generated: True if the original may refuse the rows.
        block: the number of consecutive rows that are dropped together if the original
            refuses one of the rows.
        columns: the changed column of each block, or a single column that was changed
            in all blocks.
        may_tie: True if the rows are close to a boundary, where a 32-bit step of an
            input may change the prediction.
        alone: True if the first rows are also predicted in batches of 1 and 2 rows.
        compared: False if the rows only determine which columns the original refuses.
    """

    source: str
    batch: Batch
    generated: bool = True
    block: int = 2
    columns: tuple[str, ...] = ()
    may_tie: bool = False
    alone: bool = False
    compared: bool = True


def ask_original(
    original: OriginalModel, groups: Iterable[RowGroup]
) -> Iterator[tuple[RowGroup, Answers | None]]:
    """Yield each group with the original's predictions. A group with refused rows is
    yielded in parts; the predictions of a refused part are None.
    """
    for group in groups:
        answers = _ask(original, group)
        if answers is not None:
            yield group, answers
            continue
        # A part has one or more whole blocks: it is halved if it is refused, and the
        # next part after a prediction has twice its size.
        row_count = len(group.batch)
        start = 0
        part_size = group.block
        while start < row_count:
            columns = group.columns
            if len(columns) > 1:
                columns = columns[start // group.block : (start + part_size) // group.block]
            rows = group.batch.take(slice(start, start + part_size))
            part = replace(group, batch=rows, columns=columns)
            answers = None
            if part_size < row_count:  # A part with all rows is the group, which is refused.
                answers = _ask(original, part)
            if answers is None and part_size > group.block:
                part_size //= 2
                continue
            yield part, answers
            start += part_size
            if answers is not None:
                part_size *= 2


def _ask(original: OriginalModel, group: RowGroup) -> Answers | None:
    """Return the original's predictions, or None if the original refuses generated
    rows.
    """
    try:
        return call_original(original, group.batch.data, group.source)
    except InvalidConfig:
        if not group.generated:
            raise
        return None


def prove_parity(
    model: OnnxModel,
    converted: ConvertedModel,
    original: OriginalModel,
    answered: Iterable[tuple[RowGroup, Answers | None]],
    at_least: int,
) -> ParityReport:
    """Compare the saved model with the original, up to the first rows that the saved
    model cannot predict.

    Args:
        answered: groups of rows with the original's predictions, or with None for rows
            that the original refuses.
        at_least: the number of compared rows without which the model is not proven.
    """
    proof = _ParityProof(model, converted, original)
    for group, answers in answered:
        proof.add(group, answers)
        if proof.problem:
            break
    return proof.report(at_least)


class _WorstRow(NamedTuple):
    """A prediction with a large error. The row is not yet formatted as text: for 3,000
    columns, this takes 0.1 s.
    """

    excess: float
    source: str
    output: str
    original: Array
    onnx: Array
    input: Batch

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON. A tensor without a name is called `input`."""
        return {
            "source": self.source,
            "output": self.output,
            "original": _plain(self.original),
            "onnx": _plain(self.onnx),
            "input": {
                str(name) or "input": _plain(np.asarray(values)[0])
                for name, values in self.input.data.items()
            },
        }


class _ParityProof:
    """The comparison of a saved model with its original, group by group. `problem` is
    the reason if the saved model could not predict.
    """

    def __init__(
        self, model: OnnxModel, converted: ConvertedModel, original: OriginalModel
    ) -> None:
        self._model = model
        self._converted = converted
        self._original = original
        self._figures = {
            output.name: OutputFigures(
                output.name, output.role, _TOLERANCES.get(output.role, _TOLERANCES["values"])
            )
            for output in converted.outputs
        }
        self._worst: list[_WorstRow] = []
        self._sources: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        # The sets contain (source, column) if the original predicted (or refused) a
        # block with this column changed.
        self._answered_columns: set[tuple[str, str]] = set()
        self._refused_columns: set[tuple[str, str]] = set()
        self._spreads: dict[str, Array] = {}
        self._sizes: set[int] = set()
        self.problem = ""

    def add(self, group: RowGroup, want: Answers | None) -> None:
        """Compare the rows with the original's predictions, or count the rows as
        refused if `want` is None.

        The rows are compared in one batch and, if they are equal, in the other batch
        sizes whose answers may differ.
        """
        if want is None:
            self._refused[group.source] += len(group.batch)
            self._refused_columns.update((group.source, name) for name in group.columns)
            return
        self._answered_columns.update((group.source, name) for name in group.columns)
        if not group.compared:
            return
        try:
            count = len(group.batch)
            got = self._answers(group.batch)
            self._sources[group.source] += count
            self._compare(group, want, got, count)
            # Skip the other sizes after an error, because a wrong row would be counted
            # twice.
            if self.problem or self._beyond():
                return
            if group.alone or group.source == "example":
                for size, rows in _SMALL_BATCHES:
                    head = group.batch.take(slice(0, rows))
                    small = RowGroup(f"batch of {size}", head, generated=False)
                    expected = slice_feeds(want, slice(0, rows))
                    self._compare(small, expected, self._answers_in_parts(head, size), size)
            # The graph has other operators for batches from `many_rows` on.
            many_rows = self._converted.many_rows
            if many_rows and count >= many_rows:
                got = self._answers_in_parts(group.batch, many_rows - 1)
                self._compare(group, want, got, many_rows - 1)
            elif many_rows:
                repeated = self._answers(group.batch.take(np.resize(np.arange(count), many_rows)))
                got = {name: array[:count] for name, array in repeated.items()}
                self._compare(group, want, got, many_rows)
        except (SchemaMismatch, InferenceError) as error:
            self.problem = f"{group.source} rows: {error.message}"

    def _answers(self, batch: Batch) -> Answers:
        return self._model.run(batch.feeds(self._model.schema))

    def _answers_in_parts(self, batch: Batch, size: int) -> Answers:
        """Return the saved model's predictions in batches of `size` rows. Raises
        InferenceError if an output has another number of rows than its batch.
        """
        parts = []
        for part in batch.chunks(size):
            answers = self._answers(part)
            for name, array in answers.items():
                if array.shape[:1] != (len(part),):
                    raise InferenceError(
                        f"output {name!r} has the shape {list(array.shape)} for {len(part)} rows"
                    )
            parts.append(answers)
        return concatenate_feeds(parts)

    def _compare(self, group: RowGroup, want: Answers, got: Answers, size: int) -> None:
        """Count the errors of a group that was predicted in batches of `size` rows, or
        set `problem` if an output has another shape than the original's.
        """
        self._sizes.add(size)
        margin = self._converted.margin
        probabilities = want.get("probabilities")
        if probabilities is None:
            tied = np.zeros(len(group.batch), dtype=bool)
            if margin is not None:
                scores = margin(group.batch.data)
                largest = float(np.abs(scores).max())
                tied = comparison.top_margins(scores) < TIE_MARGIN * min(1.0, largest)
        elif want["label"].ndim > 1:  # The labels of several targets are decided separately.
            tied = np.abs(2 * probabilities - 1).min(axis=1) < TIE_MARGIN
        else:
            tied = comparison.top_margins(probabilities) < TIE_MARGIN
            if margin is not None and tied.any():  # Saturated probabilities of 1 hide the margin.
                scores = margin(group.batch.data)
                largest_scores = np.abs(scores.reshape(len(scores), -1)).max(axis=1)
                limits = TIE_MARGIN * np.maximum(largest_scores, 1.0)
                tied &= comparison.top_margins(scores) < limits
        for output in self._converted.outputs:
            expected = want[output.name]
            answered = got[output.name]
            if expected.shape != answered.shape:
                self.problem = (
                    f"output {output.name!r} has the shape {answered.shape} for "
                    f"{len(group.batch)} rows; the original returns {expected.shape}"
                )
                return
            self._count(group, output, expected, answered, tied)

    def _count(self, group: RowGroup, output: Output, want: Array, got: Array, tied: Array) -> None:
        """Add the errors of one output to its figures and to the worst rows.

        Args:
            want: the original's predictions, [N, …].
            got: the saved model's predictions, [N, …].
            tied: [N] booleans, True for a row whose label is a tie.
        """
        # The first large group sets the spread for all later groups.
        spread = self._spreads.get(output.name)
        if spread is None:
            spread = comparison.answer_spread(want)
            if len(want) >= comparison.ENOUGH_ROWS:
                self._spreads[output.name] = spread
        tolerance = comparison.parity_tolerance(
            output.role, want, spread, self._converted.least_probability
        )
        agreement = compare(want, got, tolerance)
        by_row = agreement.by_row()
        # A row ties if its output changes within one rounding step of its inputs or of
        # the weights.
        beyond = ~by_row.same
        ties = np.zeros(len(beyond), dtype=bool)
        has_steps = group.may_tie or self._converted.move_weights is not None
        if has_steps and beyond.any():
            rows = group.batch.take(np.flatnonzero(beyond))
            ties[beyond] = self._changes_within_one_step(rows, output.name, want[beyond], tolerance)
        if output.role == "label":
            ties |= ~by_row.same & tied
        relative = comparison.relative_errors(agreement, want)
        self._figures[output.name].add(by_row, relative, ties)
        excess = np.where(ties, 0.0, by_row.excess)
        candidates = [*self._worst]
        for row in np.argsort(-excess, kind="stable")[:WORST_ROWS].tolist():
            if excess[row] > 0:
                candidates.append(
                    _WorstRow(
                        excess=float(excess[row]),
                        source=group.source,
                        output=output.name,
                        original=want[row],
                        onnx=got[row],
                        input=group.batch.take([row]),
                    )
                )
        candidates.sort(key=lambda entry: -entry.excess)
        self._worst = candidates[:WORST_ROWS]

    def _changes_within_one_step(
        self, rows: Batch, name: str, expected: Array, tolerance: Tolerance
    ) -> Array:
        """Return [N] booleans: True for a row whose output `name` moves beyond the
        tolerance of `expected` [N, …] within one rounding step.
        """
        move_weights = self._converted.move_weights
        random = np.random.default_rng(0)
        if move_weights:
            # Predict again, because the order of a network's sums may depend on the
            # batch size.
            expected = self._original(rows.data)[name]

        def answers_otherwise(moved: Batch, origin: Array) -> Array:
            moved_weights = move_weights(random) if move_weights else nullcontext()
            with moved_weights:
                answers = self._original(moved.data)[name]
            return ~compare(expected[origin], answers, tolerance).by_row().same

        return comparison.changes_within_one_step(rows, answers_otherwise, move_weights is not None)

    def _beyond(self) -> int:
        return sum(figures.beyond_tolerance for figures in self._figures.values())

    def report(self, at_least: int) -> ParityReport:
        """Return the report of all groups. If fewer than `at_least` rows were compared,
        the model is not proven.
        """
        rows = sum(self._sources.values())
        for figures in self._figures.values():
            figures.agreement = 1 - figures.beyond_tolerance / max(rows, 1)
        is_wrong = bool(self.problem or self._beyond())
        unproven = ""
        if not is_wrong and rows < at_least:
            refused = ", ".join(f"{count} of {source}" for source, count in self._refused.items())
            unproven = (
                f"parity needs {at_least} rows, and only {rows} rows could be compared: the "
                f"original refuses generated rows ({refused}); pass rows that the original "
                "accepts as parity_data"
            )
        # Sources without a column that was always refused have an empty list.
        columns: dict[str, list[str]] = {source: [] for source, _ in sorted(self._refused_columns)}
        for source, name in sorted(self._refused_columns - self._answered_columns):
            columns[source].append(name)
        return ParityReport(
            state="warned" if is_wrong or unproven else "proven",
            rows=rows,
            sources=dict(self._sources),
            refused_by_original=dict(self._refused),
            refused_columns=columns,
            batch_sizes=sorted(self._sizes),
            outputs=list(self._figures.values()),
            worst_rows=[row.as_dict() for row in self._worst],
            problem=self.problem,
            unproven=unproven,
            repair=self._converted.repair,
        )


def refusals_of(report: ParityReport, boundary_values: BoundaryValues) -> dict[str, object]:
    """Return the section `refused` of the MLmodel file: the values that the server must
    refuse, by column.

    A column is included if the original refused each row with only this column changed,
    and accepted other rows.
    """
    # The columns are not to blame if the original also refuses rows without a change.
    if any(report.refused_by_original.get(source) for source in ("ranges", "observed")):
        return {}
    refused = report.refused_columns
    unseen = {*refused.get("unseen", ()), *refused.get("near categories", ())}
    categories = {}
    for name in sorted(unseen.difference(refused.get("categories", ()))):
        learned = boundary_values.categories.get(name, ())
        if len(learned) >= MAX_VALUES:  # The list may be incomplete.
            continue
        # NaN differs from itself.
        present = [_plain(value) for value in learned if value is not None and value == value]
        # The graph cannot represent other numbers exactly.
        are_codes = all(
            isinstance(code, str)
            or (
                isinstance(code, int | float) and abs(code) <= _EXACT_INTEGERS and code == int(code)
            )
            for code in present
        )
        if present and are_codes:
            categories[name] = list(dict.fromkeys(present))
    refusals: dict[str, object] = {
        "missing": sorted(refused.get("missing", ())),
        "infinite": sorted(refused.get("infinite", ())),
        "categories": categories,
    }
    return {name: entry for name, entry in refusals.items() if entry}


def _plain(value: object) -> JsonValue:
    """Return a short value for JSON: numbers and strings unchanged, and only the first
    eight entries of an array.
    """
    if isinstance(value, np.ndarray):
        entries = [_plain(entry) for entry in value.reshape(-1)[:_PLAIN_ENTRIES]]
        if value.size > _PLAIN_ENTRIES:
            entries.append("…")
        return entries
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, float):
        return plain if np.isfinite(plain) else str(plain)
    if isinstance(plain, bool | int | str):
        return plain
    return str(plain)


def parity_error(report: ParityReport) -> ParityError:
    """Return the error for a model whose predictions differ from the original's, with a
    table of the worst rows.
    """
    if report.problem:
        return ParityError(
            f"the ONNX form cannot predict rows that the original predicts: {report.problem}"
        )
    if report.unproven:
        return ParityError(report.unproven)
    wrong = ", ".join(
        f"{output.name}: {output.beyond_tolerance} of {report.rows} rows beyond tolerance "
        f"({output.tolerance}), largest error {output.max_absolute_error:.3g}"
        for output in report.outputs
        if output.beyond_tolerance
    )
    names = ["source", "output", "original", "onnx", "input"]
    lines = [names]
    for row in report.worst_rows:
        lines.append([_short(row[name]) for name in names])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ""
    for line in lines:
        table += "  ".join(["", *map(str.ljust, line, widths)]).rstrip() + "\n"
    error = ParityError(
        f"the ONNX form does not match the original; {wrong}. Worst rows:\n{table}"
        'To log the model anyway, set parity="warn"; the version is then marked as warned.'
    )
    # A row whose label differs has other probabilities too.
    differing = max(output.beyond_tolerance for output in report.outputs)
    error.brief = f"{differing:,} of {report.rows:,} rows differ"
    return error


def _short(value: object) -> str:
    """Return the value as text with six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        entries = ", ".join(map(_short, value))
        return f"[{entries}]"
    if isinstance(value, dict):
        text = ", ".join(f"{name}={_short(entry)}" for name, entry in value.items())
        if len(text) <= _INPUT_WIDTH:
            return text
        return text[: _INPUT_WIDTH - 1] + "…"
    return str(value)
