"""The folder of an optimized version. This module is passed to
`mlflow.models.Model.log`, which calls `save_model`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.models import Model
from mlflow.utils.file_utils import get_total_file_size

from mlflow_deploy_plugin.core.column_names import is_prediction
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, MLMODEL
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.log_columns import to_log_columns as log_columns
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.onnx_file import ONNX_FILE, write_graph
from mlflow_deploy_plugin.wrap.evaluation.dataset import reference_rows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx
from mlflow_deploy_plugin.wrap.flavor.saved_model import PARITY_FILE


def save_model(
    path: str | Path,
    mlflow_model: Model | None = None,
    *,
    base: Path,
    graph: onnx.ModelProto,
    record: Mapping[str, object] | None = None,
    parity: Mapping[str, object] | None = None,
) -> None:
    """Write a folder with another graph and the signature, example, reference and
    environment of `base`. Raises ConversionError if the graph is too large.

    Args:
        path: the new folder.
        mlflow_model: the MLmodel to which the flavor is added.
        base: the version from which the form was made.
        graph: the graph of the form.
        record: the section `optimization` of the MLmodel file. Without a record (a
            draft), the base's reference is kept.
        parity: the section `parity` of the onnxserve flavor.
    """
    folder = Path(path)
    artifact = read_artifact(base)
    graph_files = {artifact.onnx_file.name}  # also the files with weights outside of the graph
    for tensor in onnx.load(str(artifact.onnx_file), load_external_data=False).graph.initializer:
        graph_files |= {entry.value for entry in tensor.external_data if entry.key == "location"}
    shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*graph_files))
    digests = write_graph(folder, graph)
    base_model = Model.load(str(base))
    section = base_model.flavors[artifact.flavor]
    section |= {"data": ONNX_FILE, "optimization": dict(record or {})}
    if artifact.flavor == FLAVOR:
        # The base's digests of the files that were copied.
        section["digests"] = {
            name: digest
            for name, digest in section.get("digests", {}).items()
            if (folder / name).is_file()
        }
        section["digests"] |= digests
        section["parity"] = dict(parity or {})
        proof = {
            **section["parity"],
            "optimization": section["optimization"],
            "parity_of_base": dict(artifact.parity),
        }
        (folder / PARITY_FILE).write_text(json.dumps(proof, indent=2) + "\n")
    model = mlflow_model if mlflow_model is not None else Model()
    model.flavors = base_model.flavors
    model.signature = base_model.signature
    model.metadata = base_model.metadata
    model.saved_input_example_info = base_model.saved_input_example_info
    model.save(str(folder / MLMODEL))
    if record is None:
        return
    # The saved form predicts the reference, which changes the size of the folder.
    if artifact.reference:
        _update_reference(folder, artifact.reference)
    model.model_size_bytes = get_total_file_size(str(folder))
    model.save(str(folder / MLMODEL))


def _update_reference(folder: Path, reference: str) -> None:
    """Replace the predictions in the reference by the predictions of the form, which
    drift monitors need.
    """
    form = LoadedOnnx(OnnxModel.load(folder))
    path = folder / reference
    table = pq.read_table(path)
    rows = reference_rows(form.artifact, table.num_rows, seed=0) or {}
    columns = log_columns(
        form.model.schema, form.artifact.prediction, form.feeds(rows), form.outputs(rows)
    )
    for position, name in enumerate(table.column_names):
        if is_prediction(name):
            values = pa.array(columns[name].tolist(), type=table.column(name).type)
            table = table.set_column(position, name, values)
    pq.write_table(table, path, compression="zstd")
