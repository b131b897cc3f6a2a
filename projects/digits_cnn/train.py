"""Train the digits network, log it as checked ONNX and register it.

    mlflow run projects/digits_cnn -e train_digits --env-manager local
    # or: python -m projects.digits_cnn.train
    mlflow run projects/digits_cnn -e train_digits --env-manager local \\
        -P mode=incremental -P data=labelled.parquet \\
        -P base_model=models:/digits-cnn/1

Data: the 1,797 images of scikit-learn's `load_digits` (UCI, Alpaydin and Kaynak 1998),
a fifth of them for testing. `full` trains a new network on these and the labelled
images. `incremental` tunes the weights of a base (`fitting.py`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from projects.digits_cnn.fitting import (
    accuracy,
    fit,
    fit_incremental,
    read_labelled,
    save_labelled,
    save_weights,
)
from projects.training import log_options, option, register, run_command, warn_of_chance

TEST_IMAGES = "test_images.parquet"
"""The artifact for later evaluations by `onnxserve gate` and `onnxserve optimize`."""
BRIGHTEST = 16.0  # The pixels are counts from 0 to 16.


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    seed: int = option(
        7,
        "seed of the test images, the initial weights and the order of the batches",
    )
    epochs: int = option(12, "number of epochs")
    mode: str = option("full", "train a new network, or tune a base", "full", "incremental")
    data: str = option("", "Parquet file of labelled images")
    base_model: str = option("", "the served version, which an incremental training tunes")
    registered_model: str = option("digits-cnn", "registered model of the version")


def load_images(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images, test images (float32 [N, 1, 8, 8] in 0..1), training
    digits, test digits (int64 [N]).
    """
    digits = load_digits()
    images = (digits.images / BRIGHTEST).astype(np.float32)[:, np.newaxis]
    return train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=0.2,
        random_state=seed,
        stratify=digits.target,
    )


def train(options: Training) -> Any:
    """Train, log and register a version, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: the file or an option is not valid.
        ParityError: the predictions of the ONNX form would differ from the network.
        NotFound / RegistryUnavailable: the base does not exist, or MLflow does not
            respond.
    """
    with mlflow.start_run():
        train_images, test_images, train_digits, test_digits = load_images(options.seed)
        new_images, new_digits = (
            read_labelled(Path(options.data))
            if options.data
            else (train_images[:0], train_digits[:0])
        )
        log_options(options)
        mlflow.log_input(
            mlflow.data.from_numpy(train_images, targets=train_digits, name="digits"),
            context="training",
        )
        built_in = (train_images, train_digits)
        if options.mode == "incremental":
            network, way = fit_incremental(
                built_in,
                (new_images, new_digits),
                options.base_model,
                options.epochs,
                options.seed,
            )
        else:
            images = np.concatenate([train_images, new_images])
            digits = np.concatenate([train_digits, new_digits])
            network = fit(images, digits, options.epochs, options.seed)
            way = "new network"
        save_weights(network)
        save_labelled(test_images, test_digits, TEST_IMAGES)
        test_accuracy = accuracy(network, test_images, test_digits)
        mlflow.log_metric("test_accuracy", test_accuracy)
        print(f"accuracy on {len(test_images)} test images: {test_accuracy:.3f}", flush=True)
        warn_of_chance(test_accuracy, test_digits)
        return register(
            network,
            options.registered_model,
            "scikit-learn's digits"
            + (f" and {len(new_images):,} labelled images" if len(new_images) else ""),
            f"{options.mode}: {way}",
            input_example=train_images[:4],
            parity_data=test_images,
            reference_data=train_images,
        )


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
