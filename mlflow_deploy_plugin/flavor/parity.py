"""Parity: the saved model compared with the original on a thousand rows and more, before anything is logged.

The saved side is the whole path of a request: the compiled signature, the graph, the outputs (`OnnxModel`). Every row
counts once, with its source. A row that the original itself refuses is dropped and counted.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.errors import InferenceError, InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.flavor.comparison import (
    ABSOLUTE,
    ENOUGH_ROWS,
    RELATIVE,
    TIE_MARGIN,
    answer_spread,
    changes_within_one_step,
    compare_output,
    top_margins,
)
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel, call_original
from mlflow_deploy_plugin.flavor.parity_report import OutputFigures, ParityReport
from mlflow_deploy_plugin.runtime import Array, OnnxModel, Output

WORST_ROWS = 5
_SMALL_BATCHES = ((1, 16), (2, 16))  # batch size, rows that are also predicted in batches of this size

_TOLERANCES = {
    "label": f"equal; rows whose own margin is below {TIE_MARGIN:g} are ties",
    "probabilities": f"{ABSOLUTE:g} absolute: sums in 32-bit floats",
    "values": f"{RELATIVE:g} of the value + {ABSOLUTE:g} of the spread of the answers: sums in 32-bit floats",
}


@dataclass(frozen=True)
class RowGroup:
    """Rows of one source.

    Attributes:
        generated: the original may refuse them.
        block: if the original refuses, this many consecutive rows are dropped together; 0: all.
        may_tie: the rows were made to lie between two predictions, so that a rounding decides: a row is a tie if the
            original itself predicts otherwise once its input moves by one 32-bit step.
        alone: the first rows are also predicted one by one.
    """

    source: str
    batch: Batch
    generated: bool = True
    block: int = 0
    may_tie: bool = False
    alone: bool = False


def prove_parity(
    model: OnnxModel, converted: ConvertedModel, groups: Iterable[RowGroup], at_least: int = 1
) -> ParityReport:
    """Compare the saved model with the original on all rows, of which the original must answer `at_least`.

    The report's state is `proven`, or `warned` if the answers differ; the caller decides whether that is an error.
    """
    if converted.original is None:
        return ParityReport("no-original")
    proof = _ParityProof(model, converted)
    for group in groups:
        proof.add(group)
        if proof.problem:
            break
    return proof.report(at_least)


class _ParityProof:
    """The figures over all rows so far."""

    def __init__(self, model: OnnxModel, converted: ConvertedModel) -> None:
        assert converted.original is not None
        self._model, self._original, self._converted = model, converted.original, converted
        self._figures = {
            output.name: OutputFigures(output.name, output.role, _TOLERANCES.get(output.role, _TOLERANCES["values"]))
            for output in converted.outputs
        }
        self._worst: list[tuple[float, dict[str, Any]]] = []
        self._sources: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._spreads: dict[str, Array] = {}
        self._sizes: set[int] = set()
        self.problem = ""

    def add(self, group: RowGroup) -> None:
        try:
            want = call_original(self._original, group.batch, group.source)
        except InvalidConfig:
            if not group.generated:
                raise
            self._drop_refused_blocks(group)
            return
        try:
            got = self._answers(group.batch)
            self._sources[group.source] += batches.row_count(group.batch)
            self._sizes.add(batches.row_count(group.batch))
            self._compare(group, want, got)
            # rows that are already wrong would only be counted twice
            if (group.alone or group.source == "example") and not self.problem and not self._beyond():
                self._small_batches(group, want)
        except (SchemaMismatch, InferenceError) as error:
            self.problem = f"{group.source} rows: {error.message}"

    def _drop_refused_blocks(self, group: RowGroup) -> None:
        """Find the blocks that the original refuses by bisection, and add the others."""
        count = batches.row_count(group.batch)
        if not group.block or count <= group.block:
            self._refused[group.source] += count
            return
        middle = (count // group.block + 1) // 2 * group.block
        for part in (slice(0, middle), slice(middle, count)):
            self.add(replace(group, batch=batches.take_rows(group.batch, part)))

    def _answers(self, batch: Batch) -> dict[str, Array]:
        return self._model.run(batches.to_feeds(self._model.schema, batch))

    def _small_batches(self, group: RowGroup, want: dict[str, Array]) -> None:
        for size, count in _SMALL_BATCHES:
            some = batches.take_rows(group.batch, slice(0, count))
            answers = [self._answers(part) for part in batches.chunks(some, size)]
            got = {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
            source = RowGroup(f"batch of {size}", some, generated=False)
            self._compare(source, {name: array[:count] for name, array in want.items()}, got)
            self._sizes.add(size)

    def _compare(self, group: RowGroup, want: dict[str, Array], got: dict[str, Array]) -> None:
        count = batches.row_count(group.batch)
        tied = self._ties(group, want)
        for output in self._converted.outputs:
            expected, found = want[output.name], got[output.name]
            if expected.shape != found.shape:
                self.problem = (
                    f"output {output.name!r} has the shape {found.shape} for {count} rows; "
                    f"the original's is {expected.shape}"
                )
                return
            self._count(group, output, expected, found, tied)

    def _count(self, group: RowGroup, output: Output, want: Array, got: Array, tied: Array) -> None:
        scale = self._scale(output, want)
        measured = compare_output(output.role, want, got, scale)
        beyond = measured.excess > 1
        ties = beyond & tied if output.role == "label" else np.zeros(len(beyond), dtype=bool)
        if group.may_tie and beyond.any():
            ties[beyond] |= self._unstable(group, output, beyond, want, scale)
        beyond &= ~ties
        figures = self._figures[output.name]
        figures.beyond_tolerance += int(beyond.sum())
        figures.ties += int(ties.sum())
        figures.max_absolute_error = max(figures.max_absolute_error, float(measured.absolute[~ties].max(initial=0)))
        figures.max_relative_error = max(figures.max_relative_error, float(measured.relative[~ties].max(initial=0)))
        excess = np.where(ties, 0.0, measured.excess)
        figures.max_excess = max(figures.max_excess, float(excess.max(initial=0)))
        for row in np.argsort(-excess, kind="stable")[:WORST_ROWS]:
            if excess[row] > 0:
                shown = _shown(group, output.name, int(row), want, got)
                self._worst.append((float(excess[row]), shown))
        self._worst = sorted(self._worst, key=lambda entry: -entry[0])[:WORST_ROWS]

    def _ties(self, group: RowGroup, want: dict[str, Array]) -> Array:
        """Return [N] booleans: True if the original's own margin is below `TIE_MARGIN` (scores: times the largest)."""
        if "probabilities" in want:
            probabilities = want["probabilities"]
            if want["label"].ndim > 1:  # several labels a row, each decided by itself
                return np.asarray(np.abs(2 * probabilities - 1).min(axis=1) < TIE_MARGIN)
            tied = top_margins(probabilities) < TIE_MARGIN
            if self._converted.margin is not None and tied.any():  # far outside, probabilities of 1 hide the best label
                scores = self._converted.margin(group.batch)
                largest = np.abs(scores.reshape(len(scores), -1)).max(axis=1)
                tied &= top_margins(scores) < TIE_MARGIN * np.maximum(largest, 1.0)
            return tied
        if self._converted.margin is not None:
            scores = self._converted.margin(group.batch)
            return top_margins(scores) < TIE_MARGIN * min(1.0, float(np.abs(scores).max()))
        return np.zeros(batches.row_count(group.batch), dtype=bool)

    def _scale(self, output: Output, want: Array) -> Array:
        """Return the spread of the original's answers, taken from the first group with enough rows."""
        if len(want) >= ENOUGH_ROWS:
            self._spreads.setdefault(output.name, answer_spread(want))
        return self._spreads.get(output.name, answer_spread(want))

    def _unstable(self, group: RowGroup, output: Output, beyond: Array, want: Array, scale: Array) -> Array:
        """Return True for a row beyond the tolerance if the original itself predicts otherwise a 32-bit step away."""
        expected = want[beyond]

        def answers_otherwise(moved: Batch, origin: Array) -> Array:
            answers = self._original(moved)[output.name]
            return compare_output(output.role, expected[origin], answers, scale).excess > 1

        return changes_within_one_step(batches.take_rows(group.batch, np.flatnonzero(beyond)), answers_otherwise)

    def _beyond(self) -> int:
        return sum(figures.beyond_tolerance for figures in self._figures.values())

    def report(self, at_least: int) -> ParityReport:
        rows = sum(self._sources.values())
        for figures in self._figures.values():
            figures.agreement = 1 - figures.beyond_tolerance / max(rows, 1)
        wrong = self.problem or self._beyond()
        unproven = ""
        if not wrong and rows < at_least:
            refused = ", ".join(f"{count} of {source}" for source, count in self._refused.items())
            unproven = (
                f"parity needs {at_least} rows, and only {rows} rows could be compared: the original itself refuses "
                f"generated ones ({refused}); give rows that it answers as parity_data"
            )
        return ParityReport(
            state="warned" if wrong or unproven else "proven",
            rows=rows,
            sources=dict(self._sources),
            refused_by_original=dict(self._refused),
            batch_sizes=sorted(self._sizes),
            outputs=list(self._figures.values()),
            worst_rows=[row for _, row in self._worst],
            problem=self.problem,
            unproven=unproven,
            repair=self._converted.repair,
        )


def _shown(group: RowGroup, output: str, row: int, want: Array, got: Array) -> dict[str, Any]:
    one = batches.take_rows(group.batch, slice(row, row + 1))
    if isinstance(one, pd.DataFrame):
        values: Any = {str(name): _plain(one[name].iloc[0]) for name in one.columns}
    else:
        values = {name or "input": _plain(array[0]) for name, array in one.items()}
    return {
        "source": group.source,
        "output": output,
        "original": _plain(want[row]),
        "onnx": _plain(got[row]),
        "input": values,
    }


def _plain(value: Any) -> Any:
    """Return a short value for JSON: numbers and texts as they are, arrays as their first numbers."""
    if isinstance(value, np.ndarray):
        flat = [_plain(entry) for entry in value.reshape(-1)[:8]]
        return [*flat, "…"] if value.size > 8 else flat
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str) else str(value)
