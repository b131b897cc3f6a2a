"""Prune a torch network, train the other weights further, and register the fastest of
its forms.

    mlflow run projects/prune -e prune --env-manager local \\
        -P original=models:/digits-torch/1 -P data=train.parquet -P target=digit

The smallest weights of each layer are set to zero and stay zero (Han et al. 2015,
https://arxiv.org/abs/1506.02626).
"""

import sys
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
from mlflow import MlflowClient

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.training import log_options, option, register, run_command

try:
    import torch
    from torch import nn
    from torch.nn.utils import prune as pruning
except ModuleNotFoundError:
    sys.exit("prune needs torch: install it, e.g. by `make install`, and use `--env-manager local`")

FORMS: tuple[dict[str, Any], ...] = ({"int8": "dynamic"}, {"int8": "static"}, {"fp16": True})
FASTEST = "fastest"
BATCH = 64
RATE = 1e-3
EXAMPLE_ROWS = 100
_GAIN = 0.95
"""The share of the network's time from which a form is faster than noise."""


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    original: str = option("models:/digits-torch/1", "torch network, whose code runs")
    data: str = option("train.parquet", "Parquet file of labelled rows")
    target: str = option("label", "label column: class numbers, or numbers")
    share: float = option(0.5, "share of the weights of each layer that become zero")
    epochs: int = option(10, "number of training epochs of the other weights")
    max_loss: float = option(0.01, "largest loss of the metric of an int8 or fp16 form")
    seed: int = option(7, "seed of the order of the batches")
    registered_model: str = option("pruned", "registered model of the network and its forms")


def train(options: Training) -> Any:
    """Prune, train, register and optimize a network. Return MLflow's ModelInfo of the
    pruned network.
    """
    if not 0 < options.share < 1:
        raise InvalidConfig(f"share {options.share:g} is not a share between 0 and 1")
    inputs, labels = load_rows(options)
    with mlflow.start_run():
        log_options(options)
        network = mlflow.pytorch.load_model(options.original, map_location="cpu")
        torch.manual_seed(options.seed)
        prune(network, options.share)
        fit(network, torch.from_numpy(inputs), torch.from_numpy(labels), options.epochs)
        info = register(
            network,
            options.registered_model,
            options.data,
            f"pruned from {options.original}",
            input_example=inputs[:EXAMPLE_ROWS],
            reference_data=inputs,
        )
    name_fastest_form(options, str(info.registered_model_version))
    return info


def load_rows(options: Training) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs, float32 [N, …], and the labels, [N]. Raises InvalidConfig for
    other columns.
    """
    table = pq.read_table(options.data)
    inputs = [name for name in table.column_names if name != options.target]
    if options.target not in table.column_names or len(inputs) != 1:
        raise InvalidConfig(
            f"{options.data} needs the column {options.target!r} and one column with the inputs; "
            f"it has {', '.join(table.column_names)}"
        )
    labels = table[options.target].to_numpy()
    kind = np.int64 if labels.dtype.kind in "iu" else np.float32
    return np.array(table[inputs[0]].to_pylist(), np.float32), labels.astype(kind)


def prune(network: nn.Module, share: float) -> None:
    """Mask the smallest weights of each linear and convolutional layer. Raises
    InvalidConfig if there is none.
    """
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    if not layers:
        raise InvalidConfig("the network has no linear or convolutional layer")
    for layer in layers:
        pruning.l1_unstructured(layer, "weight", share)


def fit(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train the weights that are not masked, and write the masks into the weights."""
    optimizer = torch.optim.Adam(network.train().parameters(), lr=RATE)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()  # Keep the statistics of the original training rows.
    for _ in range(epochs):
        for positions in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            predicted = network(inputs[positions])
            expected = labels[positions]
            if expected.dtype == torch.int64:
                loss = nn.functional.cross_entropy(predicted, expected)
            else:
                loss = nn.functional.mse_loss(predicted, expected.reshape(predicted.shape))
            loss.backward()
            optimizer.step()
    for layer in network.eval().modules():
        if pruning.is_pruned(layer) and hasattr(layer, "weight_mask"):
            pruning.remove(layer, "weight")


def name_fastest_form(options: Training, version: str) -> None:
    """Make all forms of a version, register those that lose little, and give the alias
    to the fastest.
    """
    name = options.registered_model
    speeds = {version: 1.0}
    for form in FORMS:
        done = onnxserve.optimize(
            f"models:/{name}/{version}",
            **form,
            data=options.data,
            target=options.target,
            max_loss=options.max_loss,
            raises=False,
        )
        if done.is_refused:
            print(done.reason, flush=True)
            continue
        speeds[done.version] = geometric_mean(done.forms[1].cost.ratio.values())
        print(f"{done.chosen}: version {done.version}, {speeds[done.version]:.2f} of the time")
    fastest = min(speeds, key=lambda key: speeds[key])
    if speeds[fastest] > _GAIN:
        fastest = version
    MlflowClient().set_registered_model_alias(name, FASTEST, fastest)
    print(f"the fastest is {name} version {fastest}", flush=True)


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
