"""A saved model as a function of named arrays: its files, its schema, its session, and batches of requests.

Imports neither mlflow, pandas nor any training framework, and ONNX Runtime only when the first session is opened.
"""

from mlflow_deploy_plugin.runtime.artifact import (
    COLUMN_TYPES,
    FLAVOR,
    PYTHON_FUNCTION,
    Artifact,
    Column,
    ColumnType,
    Input,
    Output,
    ParityState,
    Role,
    Tensor,
    altered_file_message,
    check_digests,
    read_artifact,
)
from mlflow_deploy_plugin.runtime.batchable import unbatchable_reason
from mlflow_deploy_plugin.runtime.batcher import BatchCallback, Batcher, BatchPolicy
from mlflow_deploy_plugin.runtime.dimensions import no_batch_dimension_reason
from mlflow_deploy_plugin.runtime.feeds import (
    Array,
    Feeds,
    NarrowedFeeds,
    concatenate_feeds,
    repeat_row,
    row_count,
    sent_arrays,
    slice_feeds,
)
from mlflow_deploy_plugin.runtime.log_columns import (
    EVENT_TIME,
    OUTPUT_PREFIX,
    PREDICTION,
    as_key,
    as_text,
    cast_columns,
    cast_columns_losslessly,
    output_column,
    to_log_columns,
)
from mlflow_deploy_plugin.runtime.mlmodel import MLMODEL, check_yaml, read_mlmodel
from mlflow_deploy_plugin.runtime.model import (
    OnnxModel,
    OpaqueBody,
    OpaqueBodyPredictor,
    OpaqueResponse,
    Predictor,
    RemotePredictor,
)
from mlflow_deploy_plugin.runtime.pyfunc_artifact import UNNAMED_OUTPUT, pyfunc_schema, read_served_artifact
from mlflow_deploy_plugin.runtime.schema import Schema, compile_schema
from mlflow_deploy_plugin.runtime.session import (
    available_cores,
    check_device_libraries,
    import_onnxruntime,
    open_session,
)
from mlflow_deploy_plugin.runtime.values import NO_ROWS, numpy_dtype, short_repr

__all__ = [
    "COLUMN_TYPES",
    "EVENT_TIME",
    "FLAVOR",
    "MLMODEL",
    "NO_ROWS",
    "OUTPUT_PREFIX",
    "PREDICTION",
    "PYTHON_FUNCTION",
    "UNNAMED_OUTPUT",
    "Array",
    "Artifact",
    "BatchCallback",
    "BatchPolicy",
    "Batcher",
    "Column",
    "ColumnType",
    "Feeds",
    "Input",
    "NarrowedFeeds",
    "OnnxModel",
    "OpaqueBody",
    "OpaqueBodyPredictor",
    "OpaqueResponse",
    "Output",
    "ParityState",
    "Predictor",
    "RemotePredictor",
    "Role",
    "Schema",
    "Tensor",
    "altered_file_message",
    "as_key",
    "as_text",
    "available_cores",
    "cast_columns",
    "cast_columns_losslessly",
    "check_device_libraries",
    "check_digests",
    "check_yaml",
    "compile_schema",
    "concatenate_feeds",
    "import_onnxruntime",
    "no_batch_dimension_reason",
    "numpy_dtype",
    "open_session",
    "output_column",
    "pyfunc_schema",
    "read_artifact",
    "read_mlmodel",
    "read_served_artifact",
    "repeat_row",
    "row_count",
    "sent_arrays",
    "short_repr",
    "slice_feeds",
    "to_log_columns",
    "unbatchable_reason",
]
