"""Prune a torch module and train the remaining weights, on labels or on the predictions
of the base.

The smallest weights of each layer are set to zero and remain zero (Han et al. 2015,
https://arxiv.org/abs/1506.02626).
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, read_artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx
from mlflow_deploy_plugin.wrap.flavor.save import save_model

_BATCH = 64
_RATE = 1e-3
_EXAMPLE_ROWS = 100


def pruned_and_tuned(
    module: nn.Module,
    base: LoadedOnnx,
    share: float,
    rows: NamedArrays,
    truth: Array | None,
    epochs: int,
    seed: int,
) -> onnx.ModelProto:
    """Prune the weights in a copy of the module, train the copy, and return its ONNX
    graph. Raises ConversionError if the module cannot be pruned or trained, or is not
    the base's original.

    Args:
        module: the torch module.
        base: the version that was made from the module.
        share: the share of each layer's weights that are pruned.
        rows: the inputs, [N, …] by name.
        truth: the targets: class indices [N], numbers [N, …], or None for the base's
            predictions.
        epochs: the number of training epochs.
        seed: the seed of the training.
    """
    if not isinstance(module, nn.Module):
        raise ConversionError(f"the original is a {type(module).__name__}, not a torch module")
    if truth is None:
        truth = base.outputs(rows)[base.artifact.prediction[0]]
    module = copy.deepcopy(module)
    masks = _masks(module, share)
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(module.train().parameters(), lr=_RATE)
    _freeze_statistics(module)
    data = _read_training_data(base, rows, truth)
    try:
        _train(module, optimizer, masks, data, epochs)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be trained on these rows: {error}",
        ) from None
    return _converted(module, base, rows)


class _MaskedWeight(NamedTuple):
    """A weight of a layer, and a mask of the same shape that is 0 for pruned
    numbers.
    """

    weight: nn.Parameter
    mask: torch.Tensor

    def prune(self) -> None:
        self.weight.data *= self.mask


def _masks(module: nn.Module, share: float) -> list[_MaskedWeight]:
    """Return the weights of linear and convolutional layers with their masks. Raises
    ConversionError if there are none.
    """
    masks = []
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            continue  # Embeddings are not pruned.
        for weight in layer.parameters(recurse=False):
            if weight.ndim > 1:
                masks.append(_MaskedWeight(weight, _keep_largest(weight, share)))
    if not masks:
        raise ConversionError(f"{type(module).__name__} has no linear or convolutional layer")
    return masks


def _freeze_statistics(module: nn.Module) -> None:
    """Keep the statistics of the original training rows."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


class _TrainingData(NamedTuple):
    """The rows for training.

    Attributes:
        arguments: the inputs [N, …], in the order of `forward`.
        targets: class indices [N] or numbers [N, …].
    """

    arguments: list[torch.Tensor]
    targets: torch.Tensor


def _read_training_data(base: LoadedOnnx, rows: NamedArrays, truth: Array) -> _TrainingData:
    """Return the rows as tensors, with the targets `truth`."""
    feeds = base.feeds(rows)
    targets = torch.from_numpy(np.ascontiguousarray(truth))
    arguments = [torch.from_numpy(feeds[entry.name]) for entry in base.artifact.inputs]
    return _TrainingData(arguments, targets)


def _train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    masks: list[_MaskedWeight],
    data: _TrainingData,
    epochs: int,
) -> None:
    """Prune the weights, and train the remaining weights. Pruned weights are zero after
    each step.
    """
    for masked in masks:
        masked.prune()
    for _ in range(epochs):
        for positions in torch.randperm(len(data.targets)).split(_BATCH):
            optimizer.zero_grad()
            predicted = module(*(argument[positions] for argument in data.arguments))
            _loss(predicted, data.targets[positions]).backward()
            optimizer.step()
            for masked in masks:
                masked.prune()


def _converted(module: nn.Module, base: LoadedOnnx, rows: NamedArrays) -> onnx.ModelProto:
    """Return the module's ONNX graph. Raises ConversionError if its inputs or outputs
    are not those of the base.
    """
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        save_model(module.eval(), folder, input_example=_example(base, rows))
        saved = read_artifact(Path(folder))
        graph = onnx.load(str(saved.onnx_file))
    if _tensor_names(saved) != _tensor_names(base.artifact):
        raise ConversionError(
            f"{type(module).__name__} has other inputs or outputs than the original version",
        )
    return graph


def _example(base: LoadedOnnx, rows: NamedArrays) -> ModelData:
    """Return rows for the conversion, as a table or as arrays like the base's
    example.
    """
    first_rows = take_rows(rows, slice(0, _EXAMPLE_ROWS))
    names = [field.name for field in base.artifact.columns or base.artifact.tensors]
    example: NamedArrays | Array = next(iter(first_rows.values()))  # A tensor may be unnamed.
    if all(names):
        example = {name: first_rows[name] for name in names}
    if base.artifact.columns:
        return pd.DataFrame(example)
    return example


def _tensor_names(artifact: Artifact) -> tuple[list[str], list[str]]:
    """Return the names of the graph's inputs and outputs, each sorted."""
    inputs = sorted(entry.name for entry in artifact.inputs)
    outputs = sorted(entry.name for entry in artifact.outputs)
    return inputs, outputs


def _keep_largest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask that is 0 for the smallest `share` of the numbers, and 1 for the
    others. torch's `prune` needs calls of `forward`, which attention layers omit.
    """
    mask = torch.ones(weight.numel())
    order = weight.detach().abs().flatten().argsort()
    mask[order[: round(share * weight.numel())]] = 0
    return mask.reshape(weight.shape)


def _loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy for class indices, otherwise the mean squared error."""
    if target.dtype == torch.int64 and predicted.ndim == target.ndim + 1:
        return nn.functional.cross_entropy(predicted, target)
    expected = target.to(predicted.dtype).reshape(predicted.shape)
    return nn.functional.mse_loss(predicted, expected)
