"""The pyfunc flavor: `mlflow.pyfunc.load_model` and `mlflow models serve` call it.

Predictions have the form of the original framework's own pyfunc: an array for scikit-learn; for torch and ONNX an array
for arrays and a DataFrame for a DataFrame; a mapping of arrays if there are several outputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.flavor.batch import to_feeds
from mlflow_deploy_plugin.runtime import Feeds, OnnxModel, available_cores
from mlflow_deploy_plugin.spec import Device

DEFAULT_CONFIG = {"device": "cpu", "intra_op_num_threads": None}
"""The names that `mlflow.pyfunc.load_model(uri, model_config=…)` may set; MLflow warns of others, and drops them. By
default the threads are all cores that the process may use."""


class PyfuncModel:
    """A loaded model with MLflow's `predict`."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    def get_raw_model(self) -> OnnxModel:
        return self._model

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Predict a DataFrame, an array, a mapping of columns or tensors, or a list of rows or records.

        Raises:
            SchemaMismatch: the data does not fit the signature; the message names the column.
        """
        model = self._model
        outputs = model.run(self._feeds(data), model.artifact.prediction)
        prediction = model.prediction(outputs)
        if not isinstance(data, pd.DataFrame) or model.artifact.framework not in ("torch", "onnx"):
            return prediction
        if isinstance(prediction, dict) or prediction.ndim > 2:  # their widths and meanings differ
            return prediction
        return pd.DataFrame(prediction, index=data.index)

    def _feeds(self, data: Any) -> Feeds:
        schema = self._model.schema
        if isinstance(data, pd.DataFrame):
            if schema.columns or len(schema.tensors) > 1:
                return to_feeds(schema, data)
            return schema.from_array(data.to_numpy())  # the only tensor takes the columns by their position
        if isinstance(data, Mapping):
            listed = (np.ndarray, list, tuple)
            return schema.from_columns({n: v if isinstance(v, listed) else np.asarray(v) for n, v in data.items()})
        if isinstance(data, list) and data and isinstance(data[0], Mapping):
            return schema.from_records(data)
        return schema.from_array(data)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncModel:
    """Load a model; MLflow calls it. `path` is the model's folder, `model_config` as in `DEFAULT_CONFIG`.

    Raises:
        InvalidConfig: `device` is unknown.
    """
    config = DEFAULT_CONFIG | dict(model_config or {})
    device = str(config["device"])
    if device not in get_args(Device):
        raise InvalidConfig(f"model_config: device {device!r} is not one of {', '.join(get_args(Device))}")
    threads = int(config["intra_op_num_threads"] or available_cores())
    return PyfuncModel(OnnxModel.load(Path(path), cast(Device, device), threads))
