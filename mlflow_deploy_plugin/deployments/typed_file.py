"""The file of `mlflow deployments predict -I FILE` as it was written.

MLflow's command hands on what `pandas.read_json` makes of it: numbers out of texts, dates out of columns with certain
names, floats that have lost a digit, and none of MLflow's own forms recognised. What stood there is read once more.
"""

from pathlib import Path
from typing import Any

import click
import orjson
import pandas as pd

from mlflow_deploy_plugin.deployments.payload import BODY_FORMS

_MLFLOW_CLI_MODULE = "mlflow.deployments.cli"


def original_document(inputs: Any) -> Any:
    """The document that `inputs` was made of, where it is a frame that MLflow's own command has just read; `inputs`
    itself from everybody else, and where the file is one of pandas' own forms or not here."""
    path = _input_path()
    if path is None or not isinstance(inputs, pd.DataFrame):
        return inputs
    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # a URL, a compressed file, NaN: what pandas takes beside
        return inputs
    return inputs if _is_pandas_json(document) else document


def _input_path() -> Path | None:
    context = click.get_current_context(silent=True)
    if context is None or getattr(context.command.callback, "__module__", "") != _MLFLOW_CLI_MODULE:
        return None
    path = context.params.get("input_path")
    return Path(path) if path else None


def _is_pandas_json(document: Any) -> bool:
    """`{"a": {"0": 1, "1": 3}}`, as `DataFrame.to_json` writes it, column by column or row by row."""
    if not isinstance(document, dict) or any(form in document for form in BODY_FORMS):
        return False
    return all(isinstance(values, dict) for values in document.values())
