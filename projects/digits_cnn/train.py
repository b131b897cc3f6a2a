"""Trains the digits network, logs it as checked ONNX and registers it.

    mlflow run . -e train_digits --env-manager local        # or: python -m projects.digits_cnn.train

Data: the 1,797 images of scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak 1998), a fifth of them for testing.
"""

import argparse
import sys
from typing import Any

import mlflow
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mlflow_deploy_plugin as onnxserve
from projects.command import plain_errors
from projects.parity import parity_line

try:
    import torch
    from torch import nn
except ModuleNotFoundError:
    sys.exit(
        "digits_cnn needs torch, which python_env.yaml leaves out: "
        "run it with `--env-manager local` in the environment that `make install` makes"
    )

MODEL_NAME = "digits-cnn"
BATCH = 64
BRIGHTEST = 16.0  # the pixels are counts from 0 to 16


class DigitsCNN(nn.Module):
    """Images [N, 1, 8, 8], float32 in 0..1 → scores [N, 10], one a digit, not normalised."""

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


def load_images(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images (float32 [N, 1, 8, 8] in 0..1), training digits, test digits (int64 [N])."""
    digits = load_digits()
    images = (digits.images / BRIGHTEST).astype(np.float32)[:, np.newaxis]
    return train_test_split(
        images, digits.target.astype(np.int64), test_size=0.2, random_state=seed, stratify=digits.target
    )


def fit(images: np.ndarray, digits: np.ndarray, epochs: int, seed: int) -> DigitsCNN:
    """A network trained on the images, ready to answer (in `eval` mode)."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the batches are so small that a second thread only waits
    network = DigitsCNN()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    inputs, targets = torch.from_numpy(images), torch.from_numpy(digits)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return network.eval()


def accuracy(network: DigitsCNN, images: np.ndarray, digits: np.ndarray) -> float:
    with torch.no_grad():
        scores = network(torch.from_numpy(images)).numpy()
    return float((scores.argmax(axis=1) == digits).mean())


def train(seed: int, epochs: int) -> Any:
    """Trains, logs and registers one version; MLflow's ModelInfo."""
    with mlflow.start_run() as run:
        train_images, test_images, train_digits, test_digits = load_images(seed)
        known = mlflow.get_run(run.info.run_id).data.params
        parameters = {"seed": seed, "epochs": epochs}
        mlflow.log_params({name: value for name, value in parameters.items() if name not in known})
        mlflow.log_input(mlflow.data.from_numpy(train_images, targets=train_digits, name="digits"), context="training")
        network = fit(train_images, train_digits, epochs, seed)
        test_accuracy = accuracy(network, test_images, test_digits)
        mlflow.log_metric("test_accuracy", test_accuracy)
        print(f"accuracy on {len(test_images)} test images: {test_accuracy:.3f}", flush=True)
        info = onnxserve.log_model(
            network,
            name="model",
            registered_model_name=MODEL_NAME,
            input_example=train_images[:4],
            parity_data=test_images,
        )
        logged = mlflow.get_run(run.info.run_id).data
        print(parity_line(logged.tags["onnxserve.parity"], logged.metrics), flush=True)
        print(f"registered {MODEL_NAME} version {info.registered_model_version}, run {run.info.run_id}", flush=True)
        return info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7, help="chooses the test images, first weights and batches")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images")
    options = parser.parse_args()
    with plain_errors():
        train(options.seed, options.epochs)


if __name__ == "__main__":
    main()
