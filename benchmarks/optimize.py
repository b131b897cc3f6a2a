"""Measure the gain and loss of quantization, by `onnxserve optimize`, for four networks
that classify digits.

    .venv/bin/python benchmarks/optimize.py

Each network learns 898 of scikit-learn's 1,797 digits. Half of the other digits
calibrate, and half measure the loss. Sizes, load times and latencies are the command's:
one thread, a form and its base in alternating rounds in one process, the ratio to the
base as the median over the rounds. Each network is trained once, so that its forms
differ only in their form.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.wrap.optimization.optimizer import MeasuredForm
from projects.digits_cnn.fitting import DigitsCNN
from projects.image_resnet18.network import resnet18

FORMS = ({"int8": "dynamic"}, {"int8": "static"}, {"fp16": True})


class Encoder(nn.Module):
    """Two layers of a transformer that process the eight rows of an image as a
    sequence.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(image.squeeze(1))).flatten(1))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(7)
    dense = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    return {
        "digits_cnn": DigitsCNN(),
        "dense, 2 × 1,024": dense,
        "ResNet18, width 32": nn.Sequential(nn.Upsample(scale_factor=4), resnet18(10, 1, width=32)),
        "transformer, 2 × 256": Encoder(),
    }


def fit(network: nn.Module, images: np.ndarray, digits: np.ndarray) -> nn.Module:
    inputs = torch.from_numpy(images)
    targets = torch.from_numpy(digits)
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-3)
    for _ in range(30):
        # Batch normalization needs full batches.
        for batch in torch.randperm(len(inputs))[: len(inputs) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return network.eval()


def cells(form: MeasuredForm) -> str:
    cost = form.cost
    found = form.agreement
    ratios = " | ".join(
        f"{cost.latency_us[rows]:,.0f} ({ratio:.2f})" for rows, ratio in cost.ratio.items()
    )
    loss = (
        "" if found is None else f"{found.form_metric:.4f} ({-found.loss:+.4f}) | {found.equal:.1%}"
    )
    return (
        f"{cost.size / 1e3:,.0f} | {cost.packed / 1e3:,.0f} | {cost.load_ms:.1f} | {ratios} | "
        f"{loss or ' | '}"
    )


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    source = load_digits()
    images = (source.images / 16).astype(np.float32)[:, np.newaxis]
    learned, held_out, digits, truth = train_test_split(
        images,
        source.target.astype(np.int64),
        test_size=0.5,
        random_state=7,
        stratify=source.target,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["ONNXSERVE_HOME"] = f"{folder}/home"
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        pq.write_table(pa.table({"image": held_out.tolist(), "digit": truth}), "held_out.parquet")
        print(
            "| network, form | kB | packed | load, ms | 1 row, µs | 8 rows | 1,000 rows | "
            "accuracy | equal labels |",
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, network in networks().items():
            fit(network, learned, digits)
            model = name.partition(",")[0]
            with mlflow.start_run():
                onnxserve.log_model(
                    network,
                    name="model",
                    registered_model_name=model,
                    input_example=learned[:300],
                )
            for form in FORMS:
                done = onnxserve.optimize(
                    f"models:/{model}/1",
                    **form,
                    data="held_out.parquet",
                    target="digit",
                    max_loss=0.02,
                    raises=False,
                )
                for measured in done.forms:
                    print(f"| {name}: {measured.name} | {cells(measured)} |", flush=True)
                print(f"<!-- {name}: {done.chosen or done.reason} -->", flush=True)


if __name__ == "__main__":
    main()
