"""The part of a saved model that the runtime reads: the ONNX file, and the flavor's section in the MLmodel file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.models import Model

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.converted import ConvertedModel
from mlflow_deploy_plugin.runtime.artifact import FLAVOR
from mlflow_deploy_plugin.runtime.mlmodel import MLMODEL
from mlflow_deploy_plugin.version import __version__

ONNX_FILE = "model.onnx"


def write_section(
    folder: Path, model: Model, converted: ConvertedModel, predict_fn: str, proofs: Mapping[str, Any]
) -> None:
    """What `runtime.OnnxModel` reads: the ONNX file, and the flavor's section in the MLmodel file.

    Raises:
        ConversionError: the weights do not fit into one ONNX file.
    """
    try:
        graph = converted.proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 - protobuf's own classes differ between its implementations
        raise ConversionError(f"the model does not fit into one ONNX file of 2 GB: {error}") from None
    (folder / ONNX_FILE).write_bytes(graph)
    model.add_flavor(
        FLAVOR,
        data=ONNX_FILE,
        digests={ONNX_FILE: f"sha256:{hashlib.sha256(graph).hexdigest()}"},  # who fetches it compares
        onnxserve_version=__version__,
        framework=converted.framework,
        framework_version=converted.framework_version,
        inputs=[
            {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
            | ({"columns": list(entry.columns)} if entry.columns else {})
            | ({"missing": entry.missing} if entry.missing is not None else {})
            for entry in converted.inputs
        ],
        outputs=[
            {"name": output.name, "dtype": output.dtype, "shape": list(output.shape), "role": output.role}
            for output in converted.outputs
        ],
        prediction=list(converted.prediction),
        classes=list(converted.classes),
        predict_fn=predict_fn,
        **proofs,
    )
    model.save(str(folder / MLMODEL))
