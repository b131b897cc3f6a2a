"""Prune a torch module and train the remaining weights, on labels or on the predictions
of the base.

The smallest weights of each layer are set to zero and remain zero (Han et al. 2015,
https://arxiv.org/abs/1506.02626).
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
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
    """Prune the `share` of each layer's weights in a copy of the module, train the
    copy, and return its ONNX graph.

    The targets are `truth`: class indices [N], numbers [N, …], or None for the base's
    predictions. `rows` are inputs [N, …] by name. Raises ConversionError if the module
    cannot be pruned or trained, or is not the base's original.
    """
    if not isinstance(module, nn.Module):
        raise ConversionError(f"the original is a {type(module).__name__}, not a torch module")
    if truth is None:
        truth = base.outputs(rows)[base.artifact.prediction[0]]
    module = copy.deepcopy(module)
    # Embeddings are not pruned.
    layers = [layer for layer in module.modules() if not isinstance(layer, nn.Embedding)]
    weights = (
        weight for layer in layers for weight in layer.parameters(recurse=False) if weight.ndim > 1
    )
    masked_weights = [(weight, _largest(weight, share)) for weight in weights]
    if not masked_weights:
        raise ConversionError(f"{type(module).__name__} has no linear or convolutional layer")
    torch.manual_seed(seed)
    frozen = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    optimizer = torch.optim.Adam(module.train().parameters(), lr=_RATE)
    for layer in frozen:  # Keep the statistics of the original training rows.
        layer.eval()
    feeds = base.feeds(rows)
    targets = torch.from_numpy(np.ascontiguousarray(truth))
    # in the order of `forward`
    arguments = [torch.from_numpy(feeds[entry.name]) for entry in base.artifact.inputs]
    try:
        for weight, mask in masked_weights:
            weight.data *= mask
        for _ in range(epochs):
            for positions in torch.randperm(len(targets)).split(_BATCH):
                optimizer.zero_grad()
                predicted = module(*(argument[positions] for argument in arguments))
                _loss(predicted, targets[positions]).backward()
                optimizer.step()
                for weight, mask in masked_weights:
                    weight.data *= mask
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be trained on these rows: {error}",
        ) from None
    some = take_rows(rows, slice(0, _EXAMPLE_ROWS))
    names = [field.name for field in base.artifact.columns or base.artifact.tensors]
    only = next(iter(some.values()))
    example: NamedArrays | Array = {name: some[name] for name in names} if all(names) else only
    with TemporaryDirectory(prefix="onnxserve-") as folder:
        save_model(
            module.eval(),
            folder,
            input_example=pd.DataFrame(example) if base.artifact.columns else example,
        )
        saved = read_artifact(Path(folder))
        graph = onnx.load(str(saved.onnx_file))
    saved_names, base_names = (
        [sorted(entry.name for entry in side) for side in (form.inputs, form.outputs)]
        for form in (saved, base.artifact)
    )
    if saved_names != base_names:
        raise ConversionError(
            f"{type(module).__name__} has other inputs or outputs than the original version",
        )
    return graph


def _largest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return a mask (0 or 1) per weight. torch's `prune` needs calls of `forward`,
    which attention layers omit.
    """
    mask = torch.ones(weight.numel())
    mask[weight.detach().abs().flatten().argsort()[: round(share * weight.numel())]] = 0
    return mask.reshape(weight.shape)


def _loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if target.dtype == torch.int64 and predicted.ndim == target.ndim + 1:
        return nn.functional.cross_entropy(predicted, target)
    return nn.functional.mse_loss(predicted, target.to(predicted.dtype).reshape(predicted.shape))
