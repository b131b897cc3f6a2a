"""Fit the digits network, from scratch or from the weights of a registered version."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.model_runs import load_run_artifact, logged_file

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit(
        "digits_cnn needs torch, which projects/python_env.yaml does not install: "
        "install torch, e.g. by `make install`, and run digits_cnn with `--env-manager local`",
    )

WEIGHTS = "weights.pt"
REPLAYED = 2
"""The number of built-in images per new image. A network that is tuned only on new
images forgets the others.
"""
BATCH = 64
RATE = 2e-3
TUNING_RATE = 1e-3
_SHAPE = (1, 8, 8)
_LABEL = "_label_number"

Labelled = tuple[np.ndarray, np.ndarray]
"""Images [N, 1, 8, 8] and the digits that they show, [N]."""


class DigitsCNN(nn.Module):
    """A network from images [N, 1, 8, 8], float32 in 0..1, to scores [N, 10], one per
    digit, not normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def fit(images: np.ndarray, digits: np.ndarray, epochs: int, seed: int) -> DigitsCNN:
    """Return a network trained on the images, in `eval` mode."""
    torch.manual_seed(seed)
    return _fit(DigitsCNN(), images, digits, epochs, RATE)


def fit_incremental(
    built_in: Labelled,
    new: Labelled,
    base_model: str,
    epochs: int,
    seed: int,
) -> tuple[DigitsCNN, str]:
    """Return the network of `base_model` trained further on the new images, and the
    method.

    The weights of the base are tuned on the new images and a sample of the built-in
    images, with a quarter of the epochs and a smaller learning rate. If the run of the
    base has no weights, a new network is trained instead.

    Raises:
        InvalidConfig: there are no new images, or no base is specified.
    """
    if not len(new[0]):
        raise InvalidConfig("mode incremental needs labelled images: data=FILE.parquet")
    if not base_model:
        raise InvalidConfig(
            "mode incremental needs the version to train further: base_model=models:/digits-cnn/1",
        )
    count = min(len(built_in[0]), REPLAYED * len(new[0]))
    sample = np.random.default_rng(seed).choice(len(built_in[0]), count, replace=False)
    images, digits = (
        np.concatenate([old[sample], own]) for old, own in zip(built_in, new, strict=True)
    )
    torch.manual_seed(seed)
    base = load_run_artifact(base_model, WEIGHTS, _read)
    if base is None:
        return fit(images, digits, epochs, seed), f"sampled replay of {count:,} built-in images"
    passes = max(1, epochs // 4)
    return _fit(
        base,
        images,
        digits,
        passes,
        TUNING_RATE,
    ), f"fine-tuning, {passes} passes, {count:,} built-in images"


def accuracy(network: DigitsCNN, images: np.ndarray, digits: np.ndarray) -> float:
    with torch.no_grad():
        scores = network(torch.from_numpy(images)).numpy()
    return float((scores.argmax(axis=1) == digits).mean())


def save_weights(network: DigitsCNN) -> None:
    """Log the weights to the active run, so that an incremental training can start from
    them.
    """
    with logged_file(WEIGHTS) as path:
        torch.save(network.state_dict(), path)


def save_labelled(images: np.ndarray, digits: np.ndarray, name: str) -> None:
    """Log images and their digits to the active run, as the columns `image` and `digit`
    of a Parquet file.
    """
    with logged_file(name) as path:
        pq.write_table(pa.table({"image": images.tolist(), "digit": digits}), path)


def read_labelled(path: Path) -> Labelled:
    """Read the labelled images of a file, which has a single column without `_` prefix.
    Raises InvalidConfig.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidConfig(
            f"the labelled images {path} cannot be read: {' '.join(str(error).split())}",
        ) from None
    names = [name for name in table.column_names if not name.startswith("_")]
    if len(names) != 1 or _LABEL not in table.column_names:
        columns = ", ".join(table.column_names)
        raise InvalidConfig(
            f"the labelled images {path} need one column of images and {_LABEL}; the columns are "
            f"{columns}",
        )
    table = table.drop_null()
    try:
        images = np.array(table.column(names[0]).to_pylist(), dtype=np.float32).reshape(-1, *_SHAPE)
    except ValueError:
        raise InvalidConfig(f"the labelled images {path} must have 8 × 8 numbers each") from None
    return images, table.column(_LABEL).to_numpy().astype(np.int64)


def _fit(
    network: DigitsCNN,
    images: np.ndarray,
    digits: np.ndarray,
    epochs: int,
    rate: float,
) -> DigitsCNN:
    torch.set_num_threads(1)  # The batches are too small for a second thread.
    optimizer = torch.optim.Adam(network.train().parameters(), lr=rate)
    inputs = torch.from_numpy(images)
    targets = torch.from_numpy(digits)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return network.eval()


def _read(file: str) -> DigitsCNN:
    network = DigitsCNN()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network
