"""The common steps of trainings: options, parameters and plots of the run, and the
registered version.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any, TypeVar

import mlflow
import numpy as np
from matplotlib.figure import Figure
from mlflow import MlflowClient

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.tags import TRAINING_TAG
from projects.command import one_line_errors
from projects.model_runs import parity_line

Value = TypeVar("Value")

PICTURE = "picture.png"
DATA_TAG = "data"
"""The tag of the run with the origin of the training data, e.g. `synthetic data, seed
7`.
"""
_STANDARD_ERRORS = 5
BLUE = "#0b69a3"
ORANGE = "#d9730d"
GREY = "#9aa5b1"


def option(default: Value, meaning: str, *choices: Value) -> Value:
    """Return a field of a training's options with its help text
    and its allowed values.
    """
    return field(default=default, metadata={"help": meaning, "choices": choices or None})


def run_command(train: Callable[[Any], Any], options: type[Any], document: str) -> None:
    """Train with the options of the command line. Expected failures are one line and
    exit status 1.

    Args:
        options: a dataclass whose fields are created by `option`, including `seed`. A
            field `seed` becomes `--seed`.
        document: the docstring of the module, whose first paragraph is the help.
    """
    parser = argparse.ArgumentParser(description=document.partition("\n\n")[0])
    for entry in fields(options):
        flag = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(flag, type=entry.type, default=entry.default, **entry.metadata)
    parsed = parser.parse_args()
    with one_line_errors():
        if not 0 <= parsed.seed < 2**32:
            raise InvalidConfig(
                f"seed {parsed.seed}: a whole number from 0 to {2**32 - 1} is expected",
            )
        train(options(**vars(parsed)))


def log_options(options: Any) -> None:
    """Log the options as parameters of the active run, except options that `mlflow run`
    has already logged.
    """
    run = mlflow.active_run()
    known = mlflow.get_run(run.info.run_id).data.params
    mlflow.log_params(
        {name: value for name, value in vars(options).items() if value != "" and name not in known},
    )


def log_scores(scores: dict[str, float]) -> None:
    """Log and print metrics of the held-out rows."""
    mlflow.log_metrics(scores)
    print(
        "held out: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()),
        flush=True,
    )


def warn_of_chance(accuracy: float, truth: np.ndarray) -> None:
    """Print a warning if a classifier is hardly better than always predicting the most
    frequent class.

    Args:
        truth: [N] the classes of the held-out rows, as integers from 0.
    """
    share = float(np.bincount(truth).max()) / len(truth)
    error = (share * (1 - share) / len(truth)) ** 0.5
    if accuracy < share + _STANDARD_ERRORS * error:
        print(
            f"warning: the accuracy {accuracy:.3f} is hardly better than {share:.3f}, the "
            "accuracy of always predicting the most frequent class; train for more epochs",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def picture(title: str, columns: int = 1, name: str = PICTURE) -> Iterator[Any]:
    """Yield the axes of a figure (an array for several columns), and log the figure to
    the active run as `name`.
    """
    figure = Figure(figsize=(5.2 * columns, 4.2), dpi=80, layout="constrained")
    figure.suptitle(title, fontsize=10)
    yield figure.subplots(1, columns)
    mlflow.log_figure(figure, name)


def register(model: Any, registered_model: str, origin: str, method: str, **arguments: Any) -> Any:
    """Convert the model to checked ONNX, register it, and add the origin of its data to
    the run and the version.

    Args:
        origin: the origin of the training data, e.g. `synthetic data, seed 7`.
        method: the training method for the tag `onnxserve.training`.
        arguments: additional arguments of `onnxserve.log_model`.

    Returns:
        MLflow's ModelInfo.

    Raises:
        ConversionError, ParityError: the model has no ONNX form with the same
            predictions.
    """
    mlflow.set_tag(DATA_TAG, origin)
    print("converting to ONNX and comparing its predictions with the original", flush=True)
    info = onnxserve.log_model(
        model,
        name="model",
        registered_model_name=registered_model,
        fallback="error",
        **arguments,
    )
    client = MlflowClient()
    version = info.registered_model_version
    client.set_model_version_tag(registered_model, version, TRAINING_TAG, method)
    client.update_model_version(registered_model, version, description=f"Trained on {origin}.")
    logged = mlflow.get_run(info.run_id).data
    print(parity_line(logged.tags["onnxserve.parity"], logged.metrics))
    print(
        f"registered {registered_model} version {version}, trained on {origin}, run {info.run_id}",
        flush=True,
    )
    return info
