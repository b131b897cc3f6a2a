"""Robustness curves: the metric of a version as a function of the strength of a
disturbance of its rows.

All strengths of a disturbance use the same random numbers, so that the curve is smooth.
A seed reproduces the report.
"""

import importlib.util
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from mlflow_deploy_plugin.core.errors import (
    InferenceError,
    InvalidConfig,
    NotInstalled,
    Refused,
    SchemaMismatch,
)
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.runs import LoggedRun, run_of_model
from mlflow_deploy_plugin.core.spec.evaluation_names import (
    MetricName,
    check_metric,
    check_strengths,
    disturbance_names,
    find_disturbance,
)
from mlflow_deploy_plugin.serve.runtime.feeds import sample_positions
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    NamedArrays,
    labelled_rows,
    own_columns,
    read_data,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.disturbances import (
    DisturbedVersion,
    Disturber,
    find_disturber,
    with_missing,
)
from mlflow_deploy_plugin.wrap.evaluation.metrics import Baseline
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel, downloaded_version, load_version

FOLDER = "robustness"
_LINE = "#2563eb"
_STEPS_PER_UNIT = 1000
_MAX_VALUES = 30_000_000
"""The maximum number of values to disturb: 200 colour images of 224 × 224. Memory holds
several 64-bit copies.
"""


@dataclass(frozen=True)
class RobustnessPoint:
    """The metric under a disturbance of one strength.

    Attributes:
        value: the metric; None if the model rejects the rows or the answers are not
            numbers.
        loss: the decline compared with undisturbed rows, in the metric's unit; a share
            for rmse and mae.
        variant: the worst variant if there are several, such as the scaled column.
        no_number: the share of rows with NaN or infinity in the values or
            probabilities.
        refusal: the model's error message, or a note that the metric is not a number.
    """

    disturbance: str
    strength: float
    value: float | None
    loss: float | None = None
    variant: str = ""
    no_number: float = 0.0
    refusal: str = ""


@dataclass(frozen=True)
class RobustnessReport:
    """The robustness curves of one version.

    Attributes:
        clean: the metric of the undisturbed rows.
        points: the points, ordered by disturbance, then by strength.
        cannot: the disturbances that could not be measured, with the reasons.
        notes: the parts of disturbances that were skipped because the model rejects
            such rows.
    """

    model: str
    dataset: str
    target: str
    metric: MetricName
    rows: int
    seed: int
    clean: float
    points: tuple[RobustnessPoint, ...]
    cannot: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    run: LoggedRun | None = None

    def curves(self) -> Iterator[tuple[str, list[RobustnessPoint]]]:
        """Yield the name and the points of each disturbance."""
        for name in dict.fromkeys(point.disturbance for point in self.points):
            yield name, [point for point in self.points if point.disturbance == name]

    def table(self) -> list[tuple[str, ...]]:
        """Return the lines of a table, beginning with the header and the undisturbed
        rows. A refused point has neither metric nor loss.
        """
        lines: list[tuple[str, ...]] = [
            ("disturbance", "strength", self.metric, "loss", "no number", "worst at"),
            ("none", "", f"{self.clean:.4f}", "", "", ""),
        ]
        for point in self.points:
            if point.value is None:
                cells = ("refused", "")
            else:
                cells = (f"{point.value:.4f}", f"{point.loss:+.4f}")
            no_number = f"{point.no_number:.1%}" if point.no_number else ""
            lines.append(
                (point.disturbance, f"{point.strength:g}", *cells, no_number, point.variant)
            )
        return lines

    def figures(self) -> list[tuple[str, float, int]]:
        """Return the name, value and step of each metric for MLflow. The step is the
        strength × 1000, so that the MLflow UI draws the curve.
        """
        metrics = [("robustness/clean", self.clean, 0)]
        for name, points in self.curves():
            losses = []
            for point in points:
                if point.value is not None and point.loss is not None:
                    step = round(point.strength * _STEPS_PER_UNIT)
                    metrics.append((f"robustness/{name}", point.value, step))
                    losses.append(point.loss)
            if losses:
                metrics.append((f"robustness/{name}_loss", max(losses), 0))
        return [(name, value, step) for name, value, step in metrics if math.isfinite(value)]

    def save(self, folder: Path) -> list[Path]:
        """Write robustness.json and a plot per curve; raise NotInstalled if matplotlib
        is missing.
        """
        require_matplotlib()
        # The import takes half a second.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        folder.mkdir(parents=True, exist_ok=True)
        files = {"robustness.json": (json.dumps(asdict(self), indent=2) + "\n").encode()}
        for name, points in self.curves():
            figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
            panel: Any = figure.subplots()
            measured = [point for point in points if point.value is not None]
            panel.plot(
                [point.strength for point in measured],
                [point.value for point in measured],
                color=_LINE,
                marker="o",
            )
            panel.axhline(self.clean, color="0.6", linestyle="--", linewidth=1, label="undisturbed")
            # A refused strength is a cross at the foot.
            refused = [point.strength for point in points if point.value is None]
            if refused:
                panel.scatter(
                    refused,
                    [0.03] * len(refused),
                    marker="x",
                    color="#dc2626",
                    transform=panel.get_xaxis_transform(),
                    label="refused",
                )
            if name == "scale":  # The strengths are factors.
                panel.set_xscale("log")
            else:
                panel.set_xlim(left=0)
            panel.set_xlabel(f"{name}: {find_disturbance(name).unit}", fontsize=8)
            panel.set_ylabel(self.metric, fontsize=8)
            panel.set_title(f"{self.model}, {self.rows:,} rows", fontsize=9, loc="left")
            panel.legend(fontsize=7, frameon=False)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
            file = io.BytesIO()
            FigureCanvasAgg(figure).print_png(file)
            files[f"{name}.png"] = file.getvalue()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return [folder / name for name in files]


def robustness(
    model_uri: str,
    data: object,
    target: str,
    *,
    metric: MetricName | None = None,
    strengths: Mapping[str, float | Sequence[float]] | None = None,
    original: str = "",
    max_rows: int = 2_000,
    seed: int = 0,
    log: bool = False,
    progress: ProgressCallback = lambda line: None,
) -> RobustnessReport:
    """Measure how much a version's metric drops when its rows are disturbed, by
    disturbance and strength.

    Args:
        model_uri: a version, such as models:/flight-delay/7, or a folder.
        data: a file (.csv, .parquet, .npz), a dataset named as in a gate policy, a
            DataFrame, or arrays [N, …] by name.
        target: the label column.
        metric: by default accuracy for labels, rmse for numbers.
        strengths: the disturbances, each with strengths (an empty sequence for the
            defaults); by default all that fit.
        original: the URI of the torch model from which the version was made, for `fgsm`
            and `pgd`. Its code is run. By default, the URI is read from the version if
            `strengths` contains `fgsm` or `pgd`.
        max_rows: the maximum number of rows.
        seed: the seed that samples the rows and the disturbances.
        log: True to log the report, plots and metrics to the version's run, under
            `robustness/`.
        progress: called with a line before each long step.

    Raises:
        InvalidConfig: an argument is invalid, or there is no run to log to.
        NotFound: the model does not exist.
        NotInstalled: matplotlib is missing for the plots.
        SchemaMismatch: the model rejects the undisturbed rows.
        InferenceError: the model cannot compute the undisturbed rows.
        RegistryUnavailable: MLflow does not answer.
    """
    checked = None if strengths is None else check_strengths(strengths)
    check_metric(metric)
    if log:
        require_matplotlib()
    resolved = resolve(model_uri)
    with downloaded_version(resolved) as folder:
        model = load_version(folder)
        rows, source = read_data(data, model.artifact)
        labelled = labelled_rows(rows, source, target, model.artifact, seed, max_rows)
        run = None
        if log:
            run = run_of_model(resolved, model.artifact.run_id, model.artifact.model_id)
        version = DisturbedVersion(
            labelled.rows,
            labelled.truth,
            model,
            resolved,
            folder,
            original,
            # A user who requests an attack consents to run the original's code, which
            # the attack needs.
            has_consent=checked is not None,
        )
        report = measure_robustness(version, metric, checked, seed, progress)
    report = replace(report, model=model_uri, dataset=source, target=target)
    if run is None:
        return report
    with TemporaryDirectory(prefix="onnxserve-robustness-") as temporary:
        report.save(Path(temporary))
        return replace(report, run=run.log(Path(temporary), FOLDER, report.figures()))


def measure_robustness(
    version: DisturbedVersion,
    metric: MetricName | None,
    strengths: Mapping[str, Sequence[float]] | None,
    seed: int,
    progress: ProgressCallback,
) -> RobustnessReport:
    """Measure the curves of a loaded model. The report does not include the names of
    model, dataset and target.

    Args:
        version: the loaded model and its rows, which may have more columns.
        metric: the metric; default: accuracy for labels, rmse for numbers.
        strengths: a result of `check_strengths`; None for the default strengths that
            fit the model.
        seed: the seed that samples the rows and the disturbances.
        progress: called with a line before each long step.

    Raises:
        InvalidConfig: the metric does not fit, there are fewer than two rows, or no
            disturbance can be measured.
        SchemaMismatch: the model rejects the undisturbed rows.
        InferenceError: the model cannot compute the undisturbed rows.
    """
    version = _limited_sample(version, seed)
    model = version.model
    rows = version.rows
    baseline = Baseline.of(model.predict(rows), version.truth, metric)
    points: list[RobustnessPoint] = []
    cannot: dict[str, str] = {}
    notes: list[str] = []
    if not strengths:
        kinds = {name: find_disturbance(name) for name in disturbance_names()}
        strengths = {name: kind.strengths for name, kind in kinds.items() if kind.by_default}
    for name, values in strengths.items():
        disturbed = version
        if name == "missing":
            changed, notes = _rows_with_gaps(model, rows)
            disturbed = replace(version, rows=changed)
        disturb = find_disturber(name, disturbed)
        if isinstance(disturb, Refused):
            cannot[name] = disturb.reason
            continue
        progress(f"measuring {name}")
        curve = _Curve(name, model, baseline, rows, disturb, seed)
        points += map(curve.worst_point, values)
    if not points:
        reasons = "; ".join(map(": ".join, cannot.items()))
        raise InvalidConfig(f"no disturbance can be measured: {reasons}")
    return RobustnessReport(
        model="",
        dataset="",
        target="",
        metric=baseline.metric,
        rows=len(version.truth),
        seed=seed,
        clean=baseline.value,
        points=tuple(points),
        cannot=cannot,
        notes=tuple(notes),
    )


def _limited_sample(version: DisturbedVersion, seed: int) -> DisturbedVersion:
    """Return the version with the columns that the model reads, and at most
    `_MAX_VALUES` values. Raises InvalidConfig if there are fewer than two rows.
    """
    rows = own_columns(version.model.artifact, version.rows)
    truth = version.truth
    if len(truth) < 2:
        raise InvalidConfig(
            "the data has one row with a known target; a standard deviation needs at least two"
        )
    width = sum(values[:1].size for values in rows.values())
    if len(truth) * width <= _MAX_VALUES:
        return replace(version, rows=rows)
    picked = sample_positions(len(truth), max(_MAX_VALUES // width, 2), seed)
    return replace(version, rows=take_rows(rows, picked), truth=truth[picked])


def _rows_with_gaps(model: LoadedModel, rows: NamedArrays) -> tuple[NamedArrays, list[str]]:
    """Return the columns in which values may be missing, and a note about the other
    columns. If no column accepts a missing value, all columns are returned.
    """
    row = take_rows(rows, slice(0, 1))
    refused = []
    for name, values in row.items():
        gap = with_missing({name: values}, 1.0, np.random.default_rng(0))
        try:
            model.predict({**row, **gap})
        except (SchemaMismatch, InferenceError):
            refused.append(name)
    if not refused or len(refused) == len(rows):
        return rows, []
    accepted = {column: values for column, values in rows.items() if column not in refused}
    columns = join_names(refused)
    note = f"missing: no values of {columns} are removed, because the model rejects such rows"
    return accepted, [note]


class _Curve(NamedTuple):
    """The measurement of one disturbance at several strengths."""

    name: str
    model: LoadedModel
    baseline: Baseline
    rows: NamedArrays
    disturb: Disturber
    seed: int

    def worst_point(self, strength: float) -> RobustnessPoint:
        """Return the variant with the largest loss. A model without finite predictions
        has the largest loss.
        """
        # Mix the name into the seed. Otherwise data generated with the same seed would
        # equal the noise.
        random = np.random.default_rng([zlib.crc32(self.name.encode()), self.seed])
        outcomes = []
        for variant, disturbed in self.disturb(strength, random):
            point = RobustnessPoint(self.name, strength, value=None, variant=variant)
            outcomes.append(self.measured(point, {**self.rows, **disturbed}))
        return max(outcomes, key=lambda point: math.inf if point.loss is None else point.loss)

    def measured(self, point: RobustnessPoint, rows: NamedArrays) -> RobustnessPoint:
        """Return the point with the metric of the disturbed rows, or with the reason
        why there is none.
        """
        try:
            answers = self.model.predict(rows)
            value = self.baseline.value_of(answers)
        except (SchemaMismatch, InferenceError, InvalidConfig) as error:
            return replace(point, refusal=f"refused: {error.message}")
        point = replace(point, no_number=answers.no_number)
        if math.isfinite(value):
            return replace(point, value=value, loss=self.baseline.loss(value))
        reason = f"{self.baseline.metric} is {value}: the answers are not numbers"
        return replace(point, refusal=reason)


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise NotInstalled("plots need matplotlib: pip install 'mlflow-onnxserve[monitoring]'")
