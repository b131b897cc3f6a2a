"""Train a small model (student) on the predictions of a served model (teacher), and
register it as checked ONNX.

    mlflow run projects/distill -e distill --env-manager local \\
        -P teacher=models:/flight-delay@champion
    mlflow run projects/distill -e distill --env-manager local \\
        -P teacher=models:/digits-cnn/1 -P data=images.parquet -P student=mlp

The rows need no labels: a file, the captured rows of an endpoint, or the reference of
the teacher. The student is trained on the teacher's probabilities, which contain more
information than its labels (Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network"). The student of a table is boosted trees or a small network of scikit-learn;
the student of a tensor is a torch network. Teacher and student are compared on a
held-out fifth of the rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline

from mlflow_deploy_plugin.cli.options import align_columns
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.registry.tags import tag_version
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.promote.gate.checks.budget import (
    MeasuredCost,
    measure_costs,
    median_ratio,
)
from mlflow_deploy_plugin.serve.inference_log.labels import LABEL, LABEL_NUMBER
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    View,
    open_log,
    view_schema,
    view_tables,
)
from mlflow_deploy_plugin.serve.runtime.feeds import row_count
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    NamedArrays,
    cast_to_signature,
    frame_rows,
    own_columns,
    read_dataset,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.metrics import default_metric, weighted_metric
from mlflow_deploy_plugin.wrap.evaluation.model import (
    LoadedModel,
    ModelPredictions,
    downloaded_version,
    load_version,
)
from projects.tables import EXAMPLE_ROWS, PARITY_ROWS, preprocessing
from projects.training import log_options, option, register, run_command

DISTILLED_FROM_TAG = "onnxserve.distilled_from"
MIN_ROWS = 200
MAX_ROWS = 100_000
BATCH = 1000
LABELS = (LABEL, LABEL_NUMBER)
_LEAST_WEIGHT = 0.01
_LEARNED = 60  # epochs


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    teacher: str = option(
        "models:/flight-delay@champion",
        "model whose predictions the student learns",
    )
    data: str = option(
        "",
        "dataset without labels: a .csv or .parquet file, or a dataset of a gate policy",
    )
    endpoint: str = option("", "endpoint whose captured rows are used instead of data")
    target: str = option(
        "",
        "label column, only for the comparison; of an endpoint _label (text) or _label_number",
    )
    student: str = option("boosting", "boosting or mlp; the student of a tensor is always an mlp")
    size: int = option(
        0,
        "number of trees of the student (default 50), or units of its layer (default 32)",
    )
    seed: int = option(7, "seed of the held-out fifth and the initial weights")
    registered_model: str = option(
        "",
        "registered model of the student; default: the teacher's name with -student",
    )


def train(options: Training) -> Any:
    """Train, log, register and compare a student, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: an option is not valid, or there are too few rows.
        NotFound / RegistryUnavailable: the teacher does not exist, or MLflow does not
            respond.
        ParityError: the predictions of the student's ONNX form would differ from the
            student.
    """
    if options.student not in ("boosting", "mlp"):
        raise InvalidConfig(f"student {options.student!r} is neither boosting nor mlp")
    if options.size < 0:
        raise InvalidConfig(f"size {options.size}: a whole number above 0 is expected")
    resolved = resolve(options.teacher)
    with downloaded_version(resolved) as folder, mlflow.start_run():
        log_options(options)
        teacher = load_version(folder)
        rows, truth, origin = load_rows(options, teacher)
        order = np.random.default_rng(options.seed).permutation(row_count(rows))
        held_out, learned = np.split(order, [len(order) // 5])
        print(
            f"{len(learned):,} rows for training, {len(held_out):,} for the comparison, from "
            f"{origin}",
            flush=True,
        )
        some = None if truth is None else truth[held_out]
        # Refuse unsuitable labels before the training.
        metric_of(
            teacher,
            take_rows(rows, held_out),
            some,
        )
        info = fit_and_register(options, resolved, teacher, take_rows(rows, learned), origin)
        with downloaded_version(resolve(info.model_uri)) as student:
            compare(
                (folder, student),
                (teacher, load_version(student)),
                take_rows(rows, held_out),
                some,
            )
        return info


def load_rows(
    options: Training,
    teacher: LoadedModel,
) -> tuple[NamedArrays, np.ndarray | None, str]:
    """Return the rows with the teacher's types, their labels or None, and a description
    of their origin.

    Raises:
        InvalidConfig: there are too few rows, or they do not have the target.
        NotFound: the endpoint has no captured rows.
    """
    artifact = teacher.artifact
    columns: NamedArrays
    if options.endpoint:
        origin = f"the captured rows of endpoint {options.endpoint}"
        columns = frame_rows(captured(options.endpoint, options.target in LABELS))
    elif options.data:
        columns = read_dataset(options.data, artifact)
        origin = options.data
    else:
        columns = reference_rows(artifact, MAX_ROWS, options.seed) or {}
        origin = "the reference of the teacher"
    if options.target and options.target not in columns:
        raise InvalidConfig(
            f"{origin} has no column {options.target!r}; it has {', '.join(columns)[:300]}",
        )
    truth = columns.pop(options.target) if options.target else None
    if row_count(columns) < MIN_ROWS:
        raise InvalidConfig(
            f"{origin}: {row_count(columns)} rows; a student needs {MIN_ROWS} or more (data, "
            "endpoint)",
        )
    picked = slice(0, MAX_ROWS)
    rows = own_columns(artifact, cast_to_signature(artifact, take_rows(columns, picked)))
    return rows, None if truth is None else truth[picked], origin


def captured(endpoint: str, with_labels: bool) -> pd.DataFrame:
    """Return at most `MAX_ROWS` captured rows of the endpoint, without rows of shadows.
    Raises NotFound.
    """
    log = open_log(load_settings().inference_log)
    view = View(endpoint, labels=with_labels)
    names = [
        name for name in view_schema(log, view).names if not name.startswith("_") or name in LABELS
    ]
    parts = []
    count = 0
    for table in view_tables(log, view, names):
        parts.append(
            table.select([name for name in names if name in table.column_names]).to_pandas(),
        )
        count += len(parts[-1])
        if count >= MAX_ROWS:
            break
    if not count:
        raise NotFound(f"endpoint {endpoint!r} has no captured rows yet")
    return pd.concat(parts, ignore_index=True)


def fit_and_register(
    options: Training,
    resolved: ResolvedModel,
    teacher: LoadedModel,
    rows: NamedArrays,
    origin: str,
) -> Any:
    """Fit a student on the teacher's predictions and register it."""
    name = options.registered_model or f"{resolved.name}-student"
    answers = teacher.predict(rows)
    example: Any
    if teacher.artifact.columns:
        example = pd.DataFrame(dict(rows))
        model = fit_table(options, example, answers)
        method = f"{type(model[-1]).__name__} on the predictions of {resolved.source}"
    else:
        example = next(iter(rows.values()))
        model = fit_tensor(options, example, answers)
        method = f"mlp on the predictions of {resolved.source}"
    info = register(
        model,
        name,
        f"the predictions of {resolved.source} for {origin}",
        method,
        input_example=example[:EXAMPLE_ROWS],
        parity_data=example[:PARITY_ROWS],
        reference_data=example,
    )
    tag_version(name, str(info.registered_model_version), DISTILLED_FROM_TAG, resolved.source)
    return info


def fit_table(options: Training, features: pd.DataFrame, answers: ModelPredictions) -> Any:
    """Return a pipeline that is fitted on the probabilities, or otherwise on the labels
    or numbers.
    """
    trees = options.size or 50
    units = options.size or 32
    is_mlp = options.student == "mlp"
    seed = options.seed
    estimator: Any
    if not answers.is_label:
        estimator = (
            MLPRegressor(hidden_layer_sizes=(units,), random_state=seed, max_iter=200)
            if is_mlp
            else None
        )
        estimator = estimator or HistGradientBoostingRegressor(max_iter=trees, random_state=seed)
        return make_pipeline(preprocessing(features, is_mlp), estimator).fit(
            features,
            answers.prediction,
        )
    estimator = (
        MLPClassifier(hidden_layer_sizes=(units,), random_state=seed, max_iter=200)
        if is_mlp
        else None
    )
    estimator = estimator or HistGradientBoostingClassifier(max_iter=trees, random_state=seed)
    pipeline = make_pipeline(preprocessing(features, is_mlp), estimator)
    if answers.probabilities is None or not answers.classes:
        return pipeline.fit(features, answers.prediction)
    # Each row is repeated per class with its probability as the weight, which gives the
    # cross-entropy loss.
    places, classes = np.nonzero(answers.probabilities >= _LEAST_WEIGHT)
    weights = answers.probabilities[places, classes]
    labels = np.array(answers.classes)[classes]
    return pipeline.fit(
        features.iloc[places],
        labels,
        **{f"{pipeline.steps[-1][0]}__sample_weight": weights},
    )


def fit_tensor(options: Training, values: np.ndarray, answers: ModelPredictions) -> Any:
    """Return a torch module with one hidden layer that is fitted on the scores, values
    or probabilities.

    Raises:
        InvalidConfig: torch is not installed, or the teacher returns only labels.
    """
    try:
        import torch
        from torch import nn
    except ModuleNotFoundError:
        raise InvalidConfig(
            "a teacher of tensors needs torch: pip install 'mlflow-onnxserve[torch]'",
        ) from None
    outputs = answers.prediction if not answers.is_label else answers.probabilities
    if outputs is None or outputs.dtype.kind != "f":
        raise InvalidConfig(
            "the teacher returns only labels, but the student of a tensor needs scores",
        )
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    targets = torch.from_numpy(
        np.ascontiguousarray(outputs.reshape(len(outputs), -1), dtype=np.float32),
    )
    inputs = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    units = options.size or 32
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs[0].numel(), units),
        nn.ReLU(),
        nn.Linear(units, targets.shape[1]),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(_LEARNED):
        for batch in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.mse_loss(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return network.eval()


def compare(
    folders: tuple[Path, Path],
    models: tuple[LoadedModel, LoadedModel],
    rows: NamedArrays,
    truth: np.ndarray | None,
) -> None:
    """Print a comparison of teacher and student, and log it to the active run."""
    answers = [model.predict(rows) for model in models]
    costs = measure_costs(folders, rows, BATCH)
    head = ("", "size", "1 row", f"{BATCH:,} rows", "agreement")
    scored = [metric_of(model, rows, truth) for model in models]
    lines: list[tuple[str, ...]] = [(*head, f"{scored[0].labels:,} labels") if scored[0] else head]
    ones, many = (
        median_ratio(getattr(costs[1], kind), getattr(costs[0], kind))
        for kind in ("rows", "batches")
    )
    figures: dict[str, float] = {"row_ratio": ones, "batch_ratio": many}
    compared = zip(("teacher", "student"), folders, models, answers, costs, scored, strict=True)
    for name, folder, model, answer, cost, score in compared:
        size = file_size(folder, model)
        agreement = agreement_of(answers[0], answer)
        figures |= {f"{name}_bytes": size, f"{name}_agreement": agreement}
        cells: tuple[str, ...] = (
            name,
            f"{size / 1e3:,.0f} kB",
            microseconds(cost, "rows"),
            microseconds(cost, "batches"),
            f"{agreement:.2%}",
        )
        if score is not None:
            figures[f"{name}_{score.metric}"] = score.value
            cells = (*cells, f"{score.metric} {score.value:.4f}")
        lines.append(cells)
    mlflow.log_metrics(figures)
    mlflow.log_text("\n".join(align_columns(lines, 1000)), "comparison.txt")
    print("\n".join(align_columns(lines)))
    print(
        f"the student takes {ones:.2f} of the time for one row, {many:.2f} for {BATCH:,}",
        flush=True,
    )


class Score(NamedTuple):
    """A metric of a model's predictions, and the number of labels."""

    metric: str
    value: float
    labels: int


def metric_of(model: LoadedModel, rows: NamedArrays, truth: np.ndarray | None) -> Score | None:
    """Return the score on the labelled rows, or None without labels. Raises
    InvalidConfig for unsuitable labels.
    """
    known = np.zeros(0, bool) if truth is None else ~pd.isna(pd.Series(list(truth))).to_numpy()
    if truth is None or not known.any():
        return None
    labels = np.array(truth[known].tolist())
    answered = model.predict(take_rows(rows, known))
    metric = default_metric(labels, answered)
    return Score(
        metric,
        weighted_metric(metric, labels, answered)(np.ones(len(labels))),
        len(labels),
    )


def agreement_of(teacher: ModelPredictions, student: ModelPredictions) -> float:
    """Return the share of equal labels (for scores: equal positions of the highest
    score), or R² for numbers.
    """
    expected = teacher.prediction
    predicted = student.prediction
    if not teacher.is_label and expected.ndim == 2:
        expected = expected.argmax(axis=1)
        predicted = predicted.argmax(axis=1)
    elif teacher.is_label and predicted.ndim == 2:  # The student returns class scores.
        predicted = np.array(teacher.classes or range(predicted.shape[1]))[predicted.argmax(axis=1)]
    elif not teacher.is_label:
        return float(
            1 - np.square(expected - predicted).mean() / max(float(np.var(expected)), 1e-12),
        )
    return float((expected == predicted).mean())


def file_size(folder: Path, model: LoadedModel) -> int:
    """Return the bytes of the ONNX file, or of all files of a model without one."""
    file = model.artifact.onnx_file
    if file.is_file():
        return file.stat().st_size
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def microseconds(cost: MeasuredCost, kind: str) -> str:
    return f"{np.median(np.concatenate(getattr(cost, kind))) * 1e6:,.0f} µs"


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
