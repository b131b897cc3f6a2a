"""Adversarial rows: imperceptible changes in the direction in which the model's loss
increases most.

No value changes by more than the strength, a number of standard deviations of its
column. In an image, the strength is a share of the value range, and values stay in that
range. Only floating-point numbers are changed.

- `fgsm`, one step along the sign of the gradient: Goodfellow et al. 2015,
  https://arxiv.org/abs/1412.6572
- `pgd`, ten steps from a random start: Madry et al. 2018,
  https://arxiv.org/abs/1706.06083
- `spsa`, the steps of `pgd` with gradients estimated from predictions: Uesato et al.
  2018, https://arxiv.org/abs/1802.05666

`fgsm` and `pgd` need the torch module from which the ONNX form was made. The ONNX form
then predicts the changed rows.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from mlflow_deploy_plugin.core.errors import OnnxserveError, Refused
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, read_mlmodel
from mlflow_deploy_plugin.core.model_code import model_code_refusal
from mlflow_deploy_plugin.core.registry.model_files import fetch_mlmodel
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.core.registry.tags import WRAPPED_FROM_TAG, wrapped_from
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, concatenate_feeds, row_count
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, take_rows
from mlflow_deploy_plugin.wrap.evaluation.disturbances import (
    DisturbedVersion,
    Disturber,
    value_range,
    within_type,
)
from mlflow_deploy_plugin.wrap.evaluation.metrics import argmax_labels
from mlflow_deploy_plugin.wrap.evaluation.model import (
    ModelPredictions,
    chunk_rows,
    downloaded_version,
)

LossGradient = Callable[[NamedArrays, Generator], tuple[Array, NamedArrays]]
"""A function from N rows and a random generator to the loss of each row, [N], and the
gradients by array.
"""
_ORIGINAL = "gradient of the torch original"
_STEPS = 10
# All step lengths add up to 2.5 times the strength, enough to reach any corner (Madry).
_STEP_SIZE = 2.5
_DIRECTIONS = 8
_SPSA_STEP = 0.1  # standard deviations


def attack(name: str, version: DisturbedVersion) -> Disturber | Refused:
    """Return the attack `fgsm`, `pgd` or `spsa`; a Refused if it has no gradient."""
    if name == "spsa":
        gradient = estimated_gradient(version)
    else:
        if _ORIGINAL not in version.shared:
            version.shared[_ORIGINAL] = torch_gradient(version)
        gradient = version.shared[_ORIGINAL]
    if isinstance(gradient, Refused):
        return gradient
    step = fgsm if name == "fgsm" else pgd
    return lambda strength, rng: [("", step(version.rows, strength, gradient, rng))]


def fgsm(rows: NamedArrays, strength: float, gradient: LossGradient, rng: Generator) -> NamedArrays:
    """Return the rows moved by one step along the sign of the gradient. `strength` is
    the length of the step, in standard deviations or as a share of the value range.
    """
    _, slopes = gradient(rows, rng)
    return _move(rows, rows, slopes, step=strength, strength=strength)


def pgd(rows: NamedArrays, strength: float, gradient: LossGradient, rng: Generator) -> NamedArrays:
    """Return the changed rows with the largest loss of a random start and of `_STEPS`
    steps along the sign of the gradient. `strength` is the largest distance from
    `rows`, in standard deviations or as a share of the value range.
    """
    start = {name: rng.uniform(-1, 1, values.shape) for name, values in _floats(rows).items()}
    moved = _move(rows, rows, start, step=strength, strength=strength, by_sign=False)
    worst = rows
    worst_loss = np.full(row_count(rows), -np.inf)
    for step in range(_STEPS + 1):
        losses, slopes = gradient(moved, rng)
        is_worse = losses > worst_loss
        worst_loss = np.where(is_worse, losses, worst_loss)
        worst = {
            name: np.where(_by_row(is_worse, values.ndim), moved[name], values)
            for name, values in worst.items()
        }
        if step < _STEPS:
            step_length = strength * _STEP_SIZE / _STEPS
            moved = _move(rows, moved, slopes, step_length, strength)
    return worst


def _by_row(values: Array, rank: int) -> Array:
    """Return a value per row, [N], in the shape [N, 1, …] with `rank` dimensions."""
    return values.reshape(-1, *[1] * (rank - 1))


def _move(
    rows: NamedArrays,
    current: NamedArrays,
    along: NamedArrays,
    step: float,
    strength: float,
    by_sign: bool = True,
) -> NamedArrays:
    """Return the current rows, moved by a step and clipped to within the strength of
    `rows`.

    Args:
        rows: the original rows.
        current: the rows after the previous steps.
        along: the direction of each number, such as its gradient.
        step: the length of the step, in the unit of the strength.
        strength: the largest distance from `rows`.
        by_sign: False to move by the directions instead of by their signs.
    """
    moved = dict(current)
    for name, direction in along.items():
        values = rows[name].astype(np.float64)
        unit = _unit(rows[name])
        towards = np.sign(direction) if by_sign else direction
        change = current[name] + step * unit * np.nan_to_num(towards)
        change = np.clip(change, values - strength * unit, values + strength * unit)
        if values.ndim > 2:
            change = np.clip(change, *value_range(values))
        moved[name] = within_type(change, rows[name].dtype)
    return moved


def _unit(values: Array) -> Array:
    """Return the change of a number for the strength 1: the range of an image, or the
    standard deviation of a column.
    """
    if values.ndim > 2:
        low, high = value_range(values)
        return np.asarray(high - low)
    deviations = np.nanstd(values.astype(np.float64), axis=0)
    return np.asarray(np.nan_to_num(deviations))


def _floats(rows: NamedArrays) -> NamedArrays:
    return {name: values for name, values in rows.items() if values.dtype.kind == "f"}


def estimated_gradient(version: DisturbedVersion) -> LossGradient | Refused:
    """Return a gradient that is estimated from predictions at small steps (SPSA, Spall
    1992); a Refused without floating-point inputs, or if the predictions and the target
    do not fit.
    """
    truth = version.truth
    floats = _floats(version.rows)
    if not floats:
        return Refused("the model has no floating-point inputs")
    losses = _losses(truth, version.model.predict(version.rows))
    if isinstance(losses, Refused):
        return losses
    steps = {name: _SPSA_STEP * np.maximum(_unit(values), 1e-12) for name, values in floats.items()}

    def loss_of(changed: NamedArrays) -> Array:
        """Return the loss of each row, or zeros for predictions that do not fit."""
        losses = _losses(truth, version.model.predict(changed))
        return np.zeros(len(truth)) if isinstance(losses, Refused) else losses

    def move(changed: NamedArrays, signs: NamedArrays) -> NamedArrays:
        return changed | {
            name: (changed[name] + steps[name] * sign).astype(changed[name].dtype)
            for name, sign in signs.items()
        }

    def gradient(current: NamedArrays, rng: Generator) -> tuple[Array, NamedArrays]:
        slopes = {name: np.zeros(values.shape) for name, values in floats.items()}
        for _ in range(_DIRECTIONS):
            ahead = {name: rng.choice((-1.0, 1.0), values.shape) for name, values in slopes.items()}
            behind = {name: -sign for name, sign in ahead.items()}
            rise = loss_of(move(current, ahead)) - loss_of(move(current, behind))
            for name, sign in ahead.items():
                slopes[name] += _by_row(rise, sign.ndim) * sign
        return loss_of(current), slopes

    return gradient


def _losses(truth: Array, predictions: ModelPredictions) -> Array | Refused:
    """Return the loss of each row: the cross-entropy of a class, or the squared error
    of a number. Return a Refused if the predictions and the target do not fit.
    """
    scores = predictions.prediction
    if predictions.probabilities is not None:
        labels = truth.tolist()
        columns = list(predictions.classes) or sorted(set(labels))
        if len(columns) != predictions.probabilities.shape[1] or not set(labels) <= set(columns):
            return Refused("the target contains values that are not classes of the model")
        indices = np.array([columns.index(label) for label in labels])
        likelihoods = predictions.probabilities[np.arange(len(truth)), indices].astype(np.float64)
        return np.asarray(-np.log(np.clip(likelihoods, 1e-300, None)))
    if argmax_labels(truth, predictions) is not predictions:  # The predictions are class scores.
        numbers = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(numbers).sum(axis=1))
        return np.asarray(log_sums - numbers[np.arange(len(truth)), truth.astype(int)])
    if predictions.is_label or truth.dtype.kind not in "biuf" or scores.shape != truth.shape:
        return Refused(
            "the model returns neither probabilities nor numbers that can be compared with the "
            "target"
        )
    return np.square(scores.astype(np.float64) - truth)


def torch_gradient(version: DisturbedVersion) -> LossGradient | Refused:
    """Return the gradient of the torch original for the rows; a Refused if there is no
    original, or if it cannot compute the rows.
    """
    if not version.allows_code:
        return Refused("the torch original runs its own code, which this server does not allow")
    if not _floats(version.rows):
        return Refused("the model has no floating-point inputs")
    artifact = version.model.artifact
    truth = version.truth
    module = torch_original(version)
    if isinstance(module, Refused):
        return module
    with suppress(NotImplementedError):  # An exported program does not support `eval`.
        module.eval()

    def gradient(rows: NamedArrays, rng: Generator) -> tuple[Array, NamedArrays]:
        size = chunk_rows(rows)
        losses = []
        slopes = []
        for start in range(0, len(truth), size):
            part = take_rows(rows, slice(start, start + size))
            labels = truth[start : start + size]
            part_losses, part_slopes = _backward(module, artifact, part, labels)
            losses.append(part_losses)
            slopes.append(part_slopes)
        return np.concatenate(losses), concatenate_feeds(slopes)

    try:
        gradient(version.rows, np.random.default_rng(0))
    except Exception as error:  # noqa: BLE001 - The model may raise any exception.
        return Refused(f"the torch original cannot compute these rows: {one_line(error, 200)}")
    return gradient


def torch_original(version: DisturbedVersion) -> Any:
    """Return the torch module in the version's folder, or the module from which the
    version was made. Return a `Refused` if there is none, if it may not run, or if it
    cannot be loaded. An optimized version has the original of its base.
    """
    document = read_mlmodel(version.folder)
    flavors = document.get("flavors", {})
    uri = version.original
    try:
        uri = uri or _original_uri(version.resolved, flavors, document.get("metadata") or {})
        resolved = None if uri in ("", version.resolved.source) else resolve(uri)
        if resolved is not None:
            flavors = fetch_mlmodel(resolved.source).flavors
        if not uri:
            return Refused(
                "the version has no torch original, which is needed for gradients; set --original "
                f"URI or log_model(…, metadata={{'{WRAPPED_FROM_TAG}': URI}})"
            )
        if "pytorch" not in flavors:
            return Refused(
                f"the original {uri} is not a torch module, which is needed for gradients; its "
                f"flavors are {', '.join(sorted(flavors))}"
            )
        if not (version.original or version.has_consent):
            return Refused(
                f"loading the torch original {uri} runs its own code; to consent, set --original "
                f"{uri}"
            )
        refusal = model_code_refusal(f"the torch original {uri}")
        if refusal:
            return Refused(refusal)
        if resolved is None:
            return _load_torch(version.folder)
        with downloaded_version(resolved) as downloaded:
            return _load_torch(downloaded)
    except OnnxserveError as error:
        return Refused(f"the torch original {uri}: {error.message}")


def _original_uri(
    model: ResolvedModel,
    flavors: Mapping[str, Any],
    metadata: Mapping[str, Any],
    follows_base: bool = True,
) -> str:
    """Return the URI of the torch model from which a version or its base was made;
    empty if unknown. `follows_base` is False for a base, whose own base is not read.
    """
    uri = str(metadata.get(WRAPPED_FROM_TAG, ""))
    if uri or "pytorch" in flavors:
        return uri or model.source
    uri = wrapped_from(model.name, model.version)
    base = (flavors.get(FLAVOR, {}).get("optimization") or {}).get("base")
    if uri or not base or not follows_base:
        return uri
    resolved = resolve(str(base))
    info = fetch_mlmodel(resolved.source)
    return _original_uri(resolved, info.flavors, info.metadata or {}, follows_base=False)


def _load_torch(folder: Path) -> Any:
    """Return the torch module in a folder, or a `Refused` if it cannot be loaded."""
    try:
        import mlflow.pytorch  # The import takes seconds, and only torch models need it.

        return mlflow.pytorch.load_model(str(folder), map_location="cpu")
    except ModuleNotFoundError as error:
        return Refused(
            f"the torch original needs {error.name}: pip install 'mlflow-onnxserve[torch]'"
        )
    except Exception as error:  # noqa: BLE001 - MLflow and the model may raise any exception.
        return Refused(f"the torch original cannot be loaded: {one_line(error, 200)}")


def _backward(
    module: Any, artifact: Artifact, rows: NamedArrays, labels: Array
) -> tuple[Array, NamedArrays]:
    """Return the loss of each row, [N], and the gradients by array."""
    import torch  # The import takes seconds, and only torch models need it.

    leaves = {
        name: torch.from_numpy(np.array(values)).requires_grad_(values.dtype.kind == "f")
        for name, values in rows.items()
    }
    if artifact.columns:
        columns = [leaves[column.name] for column in artifact.columns]
        arguments = [torch.stack(columns, dim=1).float()]
    else:  # The tensors are in the order of the parameters of `forward`.
        parameters = inspect.signature(module.forward).parameters
        arguments = [leaves[name] for name in parameters if name in leaves] or [*leaves.values()]
    answer = module(*arguments)
    while not isinstance(answer, torch.Tensor):  # The first output of a nested result.
        parts = answer.values() if isinstance(answer, dict) else answer
        answer = next(iter(parts))
    losses = _torch_losses(torch, answer, labels)
    losses.sum().backward()
    slopes = {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}
    return losses.detach().numpy().astype(np.float64), slopes


def _torch_losses(torch: Any, answer: Any, truth: Array) -> Any:
    """Return the losses, [N]: the cross-entropy of class scores or probabilities,
    otherwise the squared error.
    """
    numbers = answer.reshape(len(truth), -1)
    is_class = truth.ndim == 1 and truth.dtype.kind in "biu" and numbers.shape[1] > 1
    if not is_class:
        expected = torch.from_numpy(truth.astype(np.float32).reshape(len(truth), -1))
        return (numbers - expected).square().sum(dim=1)
    has_sum_1 = (numbers.sum(dim=1) - 1).abs() < 1e-3
    is_probability = (numbers >= 0).all() & has_sum_1.all()
    if is_probability.item():
        logs = numbers.clamp_min(1e-30).log()
    else:
        logs = torch.log_softmax(numbers, dim=1)
    return -logs[torch.arange(len(truth)), torch.from_numpy(truth.astype(np.int64))]
