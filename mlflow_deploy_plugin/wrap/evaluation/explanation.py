"""Explain the rows of a file: the contribution of each column to each prediction, and
the importance of columns.

Contributions are computed as for `/explain` (`serve/models/explainer.py`): exactly for
trees and linear models, otherwise by permutations on the ONNX form. The
importance of a column is its mean absolute contribution and, with labels, the loss of
the metric when the column is permuted (Breiman 2001,
https://doi.org/10.1023/A:1010933404324; scikit-learn's `permutation_importance`).
"""

import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.runs import LoggedRun, run_of_model
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName, check_metric
from mlflow_deploy_plugin.core.tabular.row_files import (
    FileFormat,
    format_of,
    open_output,
    table_writer,
)
from mlflow_deploy_plugin.serve.models.explainer import (
    RowContributions,
    explain_rows,
    most_background_rows,
    read_background,
)
from mlflow_deploy_plugin.serve.runtime.additive import LINK_SCALES
from mlflow_deploy_plugin.serve.runtime.explained import ExplainedFeature, explained_features
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, row_count, sample_positions
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.wrap.evaluation.curves import require_matplotlib
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    LabelledRows,
    NamedArrays,
    labelled_rows,
    own_columns,
    read_data,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.metrics import HIGHER_IS_BETTER, Baseline
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel, downloaded_version, load_version

EXPLAIN_FOLDER = "explain"
_PERMUTATIONS = 10  # `/explain` uses the same number of pairs of permutations.
_REPEATS = 5
_LABELLED_ROWS = 2_000
_MAX_PICTURES = 10
_SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class ColumnImportance:
    """The importance of a column: its mean absolute contribution over rows and outputs,
    and its permutation loss. `permutation` is the mean loss of the metric over the
    repeats, in the metric's unit; None without labels.
    """

    column: str
    mean_abs: float
    permutation: float | None = None
    permutation_std: float | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """The explanation of N rows by C columns and K outputs.

    Attributes:
        outputs: the classes of a classifier, otherwise the outputs.
        values: the contributions, [N, C, K] float64. The sum of contributions and base
            value is the model's answer.
        base_values: the base value of each output, [K] float64.
        data: the values of the rows by column, [N].
        positions: the positions of the rows in the data, [N], from 0.
        left_out: the number of rows that are skipped because the model does not return
            finite numbers.
        importance: the columns, the most important column first.
        metric: the metric of the permutation importance; None without labels.
        background: the number and source of the background rows: `reference`,
            `input_example` or `data`.
        method: `tree` or `linear` for exact contributions, or `permutation`.
        link: the function from predictions to the explained numbers, in the words of
            shap: `identity`, `logit` or `log`.
        max_evals: the model evaluations per row of a permutation; None for exact
            contributions.
    """

    model: str
    dataset: str
    columns: tuple[str, ...]
    outputs: tuple[str | int | float | bool, ...]
    values: Array
    base_values: Array
    data: NamedArrays
    positions: Array
    left_out: int
    importance: tuple[ColumnImportance, ...]
    metric: MetricName | None
    background: str
    method: str
    link: str
    max_evals: int | None
    seed: int
    run: LoggedRun | None = None

    def as_dict(self) -> dict[str, object]:
        """Return a JSON document without the individual rows."""
        run = None if self.run is None else asdict(self.run)
        return {
            "model": self.model,
            "dataset": self.dataset,
            "rows": len(self.values),
            "left_out": self.left_out,
            "outputs": list(self.outputs),
            "base_values": self.base_values.tolist(),
            "importance": [asdict(column) for column in self.importance],
            "metric": self.metric,
            "background": self.background,
            "method": self.method,
            "link": self.link,
            "max_evals": self.max_evals,
            "seed": self.seed,
            "run": run,
        }

    def table(self) -> list[tuple[str, ...]]:
        """Return the lines of a table, beginning with the header: the most important
        columns with their importance.
        """
        header = ["column", f"mean |SHAP|{LINK_SCALES[self.link]}"]
        if self.metric:
            header.append(f"{self.metric} lost if permuted")
        lines = [tuple(header)]
        for entry in self.importance[:_SHOWN_COLUMNS]:
            cells = [entry.column, f"{entry.mean_abs:.4g}"]
            if entry.permutation is not None:
                cells.append(f"{entry.permutation:+.4f} ± {entry.permutation_std:.4f}")
            lines.append(tuple(cells))
        return lines

    def contributions(self) -> pa.Table:
        """Return a table with a line per row and output: `_row`, `_output`,
        `_base_value`, and all contributions.
        """
        count, _, outputs = self.values.shape
        flat = self.values.transpose(0, 2, 1).reshape(count * outputs, -1)
        columns = {
            "_row": np.repeat(self.positions, outputs),
            "_output": [str(name) for name in self.outputs] * count,
            "_base_value": np.tile(self.base_values, count),
        }
        contributions = {name: flat[:, index] for index, name in enumerate(self.columns)}
        return pa.table({**columns, **contributions})

    def write_contributions(self, path: str) -> None:
        """Write the contributions in the format of the file's ending; raise
        InvalidConfig if writing fails.
        """
        kind = contributions_format(path)
        table = self.contributions()
        with (
            open_output(path, sys.stdout.buffer) as file,
            table_writer(kind, table.schema, file, "choose another format") as write,
        ):
            for batch in table.to_batches():
                write(batch)

    def save(self, folder: Path) -> list[Path]:
        """Write explain.json, contributions.parquet and SHAP's plots; raise
        NotInstalled if shap or matplotlib is missing.
        """
        require_plots()
        import shap  # The import takes half a second.

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "explain.json").write_text(
            json.dumps(self.as_dict(), indent=2, default=str) + "\n"
        )
        self.write_contributions(str(folder / "contributions.parquet"))
        files = [folder / "explain.json", folder / "contributions.parquet"]
        # Texts are NaN, because they have no position on the colour scale: SHAP draws
        # them in grey.
        numbers = np.full((len(self.values), len(self.data)), np.nan)
        for position, values in enumerate(self.data.values()):
            if values.dtype.kind in "biuf":
                numbers[:, position] = values
        # With two classes, only the second class is drawn; the first mirrors it.
        drawn = [1]
        if len(self.outputs) != 2:
            drawn = list(range(min(len(self.outputs), _MAX_PICTURES)))
        for index in drawn:
            explained = shap.Explanation(
                values=self.values[:, :, index],
                base_values=np.full(len(self.values), self.base_values[index]),
                data=numbers,
                feature_names=list(self.columns),
            )
            output = str(self.outputs[index])
            suffix = ""
            if len(drawn) > 1:
                suffix = "_" + re.sub(r"[^\w.-]", "_", output)
            title = f"{self.model}: {output}{LINK_SCALES[self.link]}"
            for name, plot in (("beeswarm", shap.plots.beeswarm), ("bar", shap.plots.bar)):
                files.append(folder / f"{name}{suffix}.png")
                _save_plot(plot, explained, title, files[-1])
        return files


def _save_plot(plot: Any, explained: Any, title: str, file: Path) -> None:
    """Save the plot of SHAP's function `plot` for an explanation."""
    import matplotlib.pyplot as plt  # The import takes half a second.

    figure = plt.figure()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about text columns.
            plot(explained, max_display=_SHOWN_COLUMNS, show=False)
        plt.title(title, fontsize=9)
        figure.savefig(file, dpi=110, bbox_inches="tight")
    finally:
        plt.close(figure)


def explain(
    model_uri: str,
    data: object,
    target: str = "",
    *,
    metric: MetricName | None = None,
    max_rows: int = 100,
    max_evals: int | None = None,
    seed: int = 0,
    log: bool = False,
    progress: ProgressCallback = lambda line: None,
) -> Explanation:
    """Explain a version's predictions for given rows, and measure the importance of its
    columns.

    Args:
        model_uri: a version, such as models:/flight-delay/7, or a folder.
        data: a table in memory, a file, or the name of a dataset; `reference` is the
            sample in the model's folder.
        target: the label column; if empty, permutation importance is not computed.
        metric: the metric for permutation importance; by default accuracy for labels,
            rmse for numbers.
        max_rows: the maximum number of rows to explain, sampled by the seed. The metric
            uses at most 2,000.
        max_evals: model evaluations per row, each with up to 100 rows; by default ten
            pairs of permutations.
        seed: the seed that samples the rows.
        log: True to log the explanation to the version's run, under `explain/`.
        progress: called with a line before each long step.

    Raises:
        InvalidRequest: the inputs of the model are images.
        InvalidArtifact: the model has no ONNX form.
        InvalidConfig: an argument is invalid.
        NotInstalled: shap or matplotlib is missing, which draw the logged plots.
        OnnxserveError: the model does not exist, or cannot be read.
    """
    if log:
        require_plots()
    check_metric(metric)
    if metric is not None and not target:
        raise InvalidConfig("metric: a metric needs labels; name the label column as target")
    resolved = resolve(model_uri)
    with downloaded_version(resolved) as folder:
        if read_served_artifact(folder).flavor == PYTHON_FUNCTION:
            raise InvalidArtifact(
                f"{model_uri} has no ONNX form (it is a pyfunc); only ONNX models can be explained"
            )
        model = OnnxModel.load(folder)
        run = None
        if log:
            run = run_of_model(resolved, model.artifact.run_id, model.artifact.model_id)
        rows, source = read_data(data, model.artifact)
        labelled = None
        if target:
            labelled = labelled_rows(rows, source, target, model.artifact, seed, _LABELLED_ROWS)
        positions = sample_positions(row_count(rows), max_rows, seed)
        rows.pop(target, None)
        feeds = model.schema.from_columns(take_rows(own_columns(model.artifact, rows), positions))
        explained = contributions(model, feeds, max_evals, seed, progress)
        losses: list[tuple[float, ...]] = [()] * len(explained.rows.features)
        if labelled is not None:
            progress(f"permuting {len(losses)} columns of {len(labelled.truth):,} rows")
            metric, losses = _permutation_importance(
                load_version(folder), labelled, metric, explained.rows.features, seed
            )
    explanation = replace(
        _assemble(explained, feeds, positions, losses),
        model=model_uri,
        dataset=source,
        metric=metric,
        seed=seed,
    )
    if run is None:
        return explanation
    with TemporaryDirectory(prefix="onnxserve-explain-") as temporary:
        explanation.save(Path(temporary))
        return replace(explanation, run=run.log(Path(temporary), EXPLAIN_FOLDER))


class Contributions(NamedTuple):
    """The contributions of the columns to the predictions of the rows.

    Attributes:
        rows: the contributions, base values and features.
        background: a description of the background rows for the user.
        evals: the model evaluations per row; None for exact contributions.
    """

    rows: RowContributions
    background: str
    evals: int | None


def _assemble(
    explained: Contributions,
    feeds: Feeds,
    positions: Array,
    losses: Sequence[tuple[float, ...]],
) -> Explanation:
    """Return the explanation of the rows with finite predictions, without the names of
    model and dataset. Raises InvalidConfig if there are none.

    Args:
        explained: the contributions to the predictions of the rows.
        feeds: the explained rows.
        positions: the positions of the rows in the data, [N].
        losses: the mean loss of the metric and its standard deviation per permuted
            column; empty tuples without labels.
    """
    shap_values = explained.rows
    is_finite = np.isfinite(shap_values.values).all(axis=(1, 2))
    if not is_finite.any():
        raise InvalidConfig(
            f"the model returns no finite numbers for these rows or for {explained.background}"
        )
    values = shap_values.values[is_finite]
    data = {feature.name: feature.values(feeds)[is_finite] for feature in shap_values.features}
    means = np.abs(values).mean(axis=(0, 2)).tolist()
    importance = [
        ColumnImportance(name, mean, *loss)
        for name, mean, loss in zip(data, means, losses, strict=True)
    ]
    return Explanation(
        model="",
        dataset="",
        columns=tuple(data),
        outputs=tuple(shap_values.outputs),
        values=values,
        base_values=shap_values.base_values,
        data=data,
        positions=positions[is_finite],
        left_out=int(np.sum(~is_finite)),
        importance=tuple(sorted(importance, key=lambda entry: -entry.mean_abs)),
        metric=None,
        background=explained.background,
        method=shap_values.method,
        link=shap_values.link,
        max_evals=explained.evals,
        seed=0,
    )


def contributions(
    model: OnnxModel, feeds: Feeds, max_evals: int | None, seed: int, progress: ProgressCallback
) -> Contributions:
    """Return the contributions. Raises InvalidConfig if `max_evals` is too small, or if
    the model does not return numbers for each row.

    Args:
        model: the loaded version.
        feeds: the explained rows.
        max_evals: model evaluations per row; None for ten pairs of permutations.
        seed: the seed of the permutations.
        progress: called with a line before the computation.
    """
    most_rows = most_background_rows(model, feeds)
    try:
        background = read_background(model, most_rows, 0)  # `/explain` uses the same rows.
        background_feeds = background.feeds
        kind = background.source
    except InvalidArtifact:  # The model has no background rows.
        background_feeds = {name: feeds[name][:most_rows] for name in feeds}
        kind = "data"
    features = explained_features(model.artifact, feeds)
    least = 2 * len(features) + 1
    evals = _PERMUTATIONS * least if max_evals is None else max_evals
    if evals < least:
        raise InvalidConfig(
            f"max_evals is {evals}; {len(features)} columns need at least {least} (2 × columns + 1)"
        )
    progress(f"explaining {row_count(feeds):,} rows")
    shap_values = explain_rows(model, background_feeds, feeds, evals, seed)
    used_evals = evals if shap_values.method == "permutation" else None
    return Contributions(shap_values, f"{shap_values.background_rows} rows of {kind}", used_evals)


def contributions_format(path: str) -> FileFormat:
    """Return the file format for contributions; raise InvalidConfig if the ending is
    unknown.
    """
    kind = format_of(path)
    if kind is None:
        raise InvalidConfig(
            f"{path}: contributions can be written to .csv, .json, .jsonl or .parquet"
        )
    return kind


def require_plots() -> None:
    if importlib.util.find_spec("shap") is None:
        raise NotInstalled(
            "plots of contributions need shap: pip install 'mlflow-onnxserve[explain]'"
        )
    require_matplotlib()


def _permutation_importance(
    model: LoadedModel,
    labelled: LabelledRows,
    metric: MetricName | None,
    features: list[ExplainedFeature],
    seed: int,
) -> tuple[MetricName, list[tuple[float, ...]]]:
    """Return the metric, and its mean loss and standard deviation for each feature
    whose values are permuted.

    Args:
        model: the loaded version.
        labelled: the rows and their labels.
        metric: the metric; None for accuracy for labels, and rmse for numbers.
        features: the features of the explanation.
        seed: the seed of the permutations.
    """
    rows = own_columns(model.artifact, labelled.rows)
    baseline = Baseline.of(model.predict(rows), labelled.truth, metric)
    sign = 1.0 if HIGHER_IS_BETTER[baseline.metric] else -1.0
    figures: list[tuple[float, ...]] = []
    for number, feature in enumerate(features):
        rng = np.random.default_rng([seed, number, len(labelled.truth)])
        place = feature.places[0]
        # A single tensor may be unnamed.
        name = next(name for name in (feature.name, place[0], *rows) if name in rows)
        losses = []
        for _ in range(_REPEATS):
            changed = rows[name].copy()
            column = changed if changed.ndim == 1 else changed[:, place[1]]  # This is a view.
            column[:] = column[rng.permutation(len(column))]
            answers = model.predict({**rows, name: changed})
            losses.append(baseline.value - baseline.value_of(answers))
        figures.append((sign * float(np.mean(losses)), float(np.std(losses))))
    return baseline.metric, figures
