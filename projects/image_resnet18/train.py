"""Train ResNet18 on scikit-learn's digits, log it as checked ONNX and register it.

    mlflow run projects/image_resnet18 -e image_resnet18 --env-manager local
    python -m projects.image_resnet18.train             # the same

Data: the 1,797 images of `load_digits` (UCI, Alpaydin and Kaynak 1998), scaled from 8 ×
8 to 32 × 32 pixels. A fifth is held out. ResNet18 is far larger than these digits need;
it is an example of networks for larger images.
"""

import json
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import torch
from sklearn.metrics import ConfusionMatrixDisplay
from torch import nn

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.digits_cnn.fitting import accuracy
from projects.digits_cnn.train import load_images
from projects.image_resnet18.network import resnet18
from projects.training import (
    log_options,
    log_scores,
    option,
    picture,
    register,
    run_command,
    warn_of_chance,
)

BATCH = 64
RATE = 1e-3
ORIGIN = "scikit-learn's digits, stretched"


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    epochs: int = option(4, "number of epochs")
    width: int = option(64, "channels of the first stage; 64 for ResNet18")
    side: int = option(32, "width and height of an image in pixels")
    seed: int = option(7, "seed of the held-out images, the initial weights and the batches")
    registered_model: str = option("image-resnet18", "registered model of the version")


def stretched(images: np.ndarray, side: int) -> np.ndarray:
    """Return images [N, 1, 8, 8] as [N, 1, side, side], float32, bilinear."""
    return nn.functional.interpolate(
        torch.from_numpy(images),
        (side, side),
        mode="bilinear",
    ).numpy()


def fit(images: np.ndarray, digits: np.ndarray, options: Training) -> nn.Module:
    """Return a network trained on the images by AdamW with one cycle of the learning
    rate, in `eval` mode.
    """
    torch.manual_seed(options.seed)
    network = resnet18(classes=10, channels=1, width=options.width).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    steps = options.epochs * -(-len(images) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    inputs = torch.from_numpy(images)
    targets = torch.from_numpy(digits)
    for epoch in range(options.epochs):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            rate.step()
        mlflow.log_metric("train_loss", loss.item(), step=epoch)
        print(f"epoch {epoch + 1} of {options.epochs}: loss {loss.item():.4f}", flush=True)
    return network.eval()


def train(options: Training) -> Any:
    """Train, log and register a version, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: a number is not valid.
    """
    for name, least in (("epochs", 1), ("width", 1), ("side", 8)):
        if getattr(options, name) < least:
            raise InvalidConfig(
                f"{name} {getattr(options, name)}: a whole number from {least} is expected",
            )
    with mlflow.start_run():
        log_options(options)
        images, held_out, digits, truth = load_images(options.seed)
        images = stretched(images, options.side)
        held_out = stretched(held_out, options.side)
        network = fit(images, digits, options)
        reached = accuracy(network, held_out, truth)
        log_scores({"accuracy": reached})
        warn_of_chance(reached, truth)
        with torch.no_grad():
            predicted = network(torch.from_numpy(held_out)).numpy().argmax(axis=1)
        with picture(f"image-resnet18 on {len(truth)} held-out digits ({ORIGIN})", 2) as axes:
            axes[0].imshow(np.hstack([image[0] for image in held_out[:4]]), cmap="gray")
            axes[0].set(xlabel="images", xticks=[], yticks=[])
            ConfusionMatrixDisplay.from_predictions(
                truth,
                predicted,
                ax=axes[1],
                colorbar=False,
                cmap="Blues",
            )
        mlflow.log_image(held_out[0, 0], "example.png")
        mlflow.log_text(
            json.dumps({"inputs": held_out[:1].astype(float).round(3).tolist()}),
            "example.json",
        )
        return register(
            nn.Sequential(network, nn.Softmax(dim=1)).eval(),
            options.registered_model,
            ORIGIN,
            f"{options.epochs} epochs from random weights",
            input_example=images[:4],
            parity_data=held_out,
        )


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
