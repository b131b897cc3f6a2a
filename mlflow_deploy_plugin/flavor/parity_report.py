"""The parity report of a model, as parity.json, as metrics of the run, and as the error that refuses a model."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mlflow_deploy_plugin.errors import ParityError
from mlflow_deploy_plugin.runtime import ParityState

_INPUT_WIDTH = 120
_CLOSE = 0.1
"""A share of the tolerance: if an error of the drawn rows is above it, other rows may be beyond the tolerance."""


@dataclass
class OutputFigures:
    """The figures of one output.

    Attributes:
        agreement: the share of rows within the tolerance, ties included.
        max_excess: the largest error in units of its tolerance, ties left out.
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


@dataclass(frozen=True)
class ParityReport:
    """The content of parity.json.

    Attributes:
        sources: number of rows by source; batches of 1 and 2 rows are checked in addition.
        refused_by_original: generated rows that were dropped because the original itself refuses them.
        problem: the reason if the saved model could not answer at all.
        unproven: the reason if the rows are too few for a proof.
    """

    state: ParityState
    rows: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    refused_by_original: dict[str, int] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)
    outputs: list[OutputFigures] = field(default_factory=list)
    worst_rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    unproven: str = ""
    repair: str = ""

    @property
    def beyond_tolerance(self) -> int:
        return sum(output.beyond_tolerance for output in self.outputs)

    @property
    def doubts(self) -> tuple[bool, int, int, bool]:
        """The doubts about this form; the form with the smallest is the best."""
        ties = sum(output.ties for output in self.outputs)
        close = any(output.max_excess > _CLOSE for output in self.outputs)
        return bool(self.problem or self.unproven), self.beyond_tolerance, ties, close

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON: an infinite error is a string."""
        return {name: _finite(value) for name, value in asdict(self).items() if value not in ("", [], {})}

    def figures(self) -> dict[str, Any]:
        """Return the short form for the MLmodel file."""
        short = self.as_dict()
        return {
            name: short[name] for name in ("state", "rows", "repair", "problem", "unproven", "outputs") if name in short
        }

    def metrics(self) -> dict[str, float]:
        """Return the metrics for the MLflow run, by names that MLflow accepts."""
        named = {"onnxserve.parity.rows": float(self.rows), "onnxserve.parity.beyond_tolerance": self.beyond_tolerance}
        for output in self.outputs:
            name = "".join(one if one.isalnum() or one in "_-. " else "_" for one in output.name)[:100]
            prefix = f"onnxserve.parity.{name}"
            named[f"{prefix}.agreement"] = output.agreement
            if output.role != "label":
                named[f"{prefix}.max_absolute_error"] = output.max_absolute_error
                named[f"{prefix}.max_relative_error"] = output.max_relative_error
        return named


def parity_error(report: ParityReport) -> ParityError:
    """Return the error for a model that answers otherwise, with the worst rows as a small table."""
    if report.problem:
        return ParityError(f"the ONNX form cannot answer what the original answers: {report.problem}")
    if report.unproven:
        return ParityError(report.unproven)
    wrong = ", ".join(
        f"{output.name}: {output.beyond_tolerance} of {report.rows} rows beyond tolerance ({output.tolerance}), "
        f"largest error {output.max_absolute_error:.3g}"
        for output in report.outputs
        if output.beyond_tolerance
    )
    return ParityError(
        f"the ONNX form answers otherwise than the original; {wrong}. Worst rows:\n{_table(report.worst_rows)}\n"
        'Log it all the same with parity="warn"; its state is then shown as warned wherever the version is.'
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Return the rows under headings, each column as wide as it needs."""
    names = ("source", "output", "original", "onnx", "input")
    lines = [names, *([_short(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(["", *map(str.ljust, line, widths)]).rstrip() for line in lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    """Return the value with six digits, which are enough to see what is wrong."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    if isinstance(value, dict):
        text = ", ".join(f"{name}={_short(entry)}" for name, entry in value.items())
        return text if len(text) <= _INPUT_WIDTH else text[: _INPUT_WIDTH - 1] + "…"
    return str(value)
