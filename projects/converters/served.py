"""Logged models on one real server, each as an endpoint that receives requests through
HTTP.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import requests
import yaml

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from tests.support.serving import servers_below
from tests.support.waiting import free_port, wait_until

_READY_SECONDS = 600
_DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


class Refused(Exception):
    """The status of the response was not 200; the message is the server's."""


class ServedModel:
    """An endpoint: an ONNX graph receives Open Inference Protocol requests for all
    outputs, a pyfunc MLflow requests.

    JSON has neither NaN nor infinity: null is NaN in both directions.
    """

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self._url = url
        self._name = name
        self._session = requests.Session()
        self._artifact = read_served_artifact(folder)

    @cached_property
    def _is_onnx(self) -> bool:
        return self._artifact.flavor != PYTHON_FUNCTION

    def is_ready(self) -> bool:
        return self._session.get(f"{self._url}/v2/models/{self._name}/ready", timeout=30).ok

    def answers(self, rows: Any, own: Any, want: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs under the names of `want`; a pyfunc has only the first.

        Args:
            rows: the rows as a table, or as tensors.
            own: the same rows in the form that the original accepts.
            want: the original's outputs.

        Raises:
            Refused: the server refuses the rows.
        """
        if not self._is_onnx:
            answer = self._post(f"endpoints/{self._name}/invocations", _mlflow_body(own))
            return {next(iter(want)): np.asarray(answer["predictions"])}
        if self._artifact.columns:
            tensors = {str(name): _values(rows[name]) for name in rows}
        else:
            tensors = {self._artifact.inputs[0].name: np.asarray(own)}
        answer = self._post(
            f"v2/models/{self._name}/infer",
            {"inputs": list(map(_tensor, tensors, tensors.values()))},
        )
        outputs = {one["name"]: _array(one) for one in answer["outputs"]}
        return {name: outputs[name] for name in want}

    def _post(self, path: str, body: Any) -> Any:
        content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"Content-Type": "application/json"}
        try:
            answer = self._session.post(
                f"{self._url}/{path}",
                data=content,
                headers=headers,
                timeout=120,
            )
        except requests.RequestException as error:
            raise Refused(f"no response: {error}") from error
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}: {answer.text[:300]}")
        return orjson.loads(answer.content)


def _values(series: "pd.Series[Any]") -> np.ndarray:
    if series.dtype.kind in "fiub":
        return series.to_numpy()
    return np.array([None if pd.isna(value) else value for value in series], dtype=object)


def _tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    datatype = _DATATYPES.get(str(array.dtype), "BYTES")
    return {
        "name": name,
        "shape": array.shape,
        "datatype": datatype,
        "data": array.reshape(-1).tolist(),
    }


def _array(output: Mapping[str, Any]) -> np.ndarray:
    is_float = output["datatype"].startswith("FP")
    return np.array(output["data"], dtype=np.float64 if is_float else None).reshape(output["shape"])


def _mlflow_body(own: Any) -> Any:
    if isinstance(own, pd.DataFrame):
        rows = own.astype(object).where(own.notna(), None)
        return {
            "dataframe_split": {"columns": list(map(str, own)), "data": rows.to_numpy().tolist()},
        }
    return {"inputs": own if isinstance(own, list) else own.tolist()}


@contextmanager
def serving(folder: Path, models: Mapping[str, Path]) -> Iterator[dict[str, ServedModel]]:
    """Serve the models of these folders with `onnxserve serve` under their names until
    the end of the block.
    """
    port = free_port()
    documents = []
    for name, path in models.items():
        document = {
            "apiVersion": "onnxserve/v1",
            "name": name,
            "variants": {"v": {"model": str(path)}},
        }
        documents.append(document | {"server": {"port": port, "max_body_bytes": 2**28}})
    (folder / "spec.yaml").write_text(yaml.safe_dump_all(documents))
    os.environ["ONNXSERVE_HOME"] = str(folder / "home")
    with servers_below(folder) as start:
        url = start("--spec", str(folder / "spec.yaml")).wait_ready(_READY_SECONDS).url
        served = {name: ServedModel(url, name, path) for name, path in models.items()}
        for model in served.values():
            with suppress(AssertionError):  # the first response contains the reason
                wait_until(model.is_ready, _READY_SECONDS)
        yield served
