"""Triton's model configuration extension of V2: a version of an endpoint as Triton's ModelConfig describes it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md and
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from collections.abc import Iterable, Sequence
from typing import Any

from mlflow_deploy_plugin.runtime import Input, Output, no_batch_dimension_reason
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols.v2_tensors import datatype_of
from mlflow_deploy_plugin.spec import ServerSpec

_INT64_DIGITS = 18


def model_config(variant: ServedVariant, versions: Sequence[str], server: ServerSpec) -> dict[str, Any]:
    """The document of `/config`.

    As in Triton, the batch is left out of `dims` where requests are joined (`max_batch_size` above 0), and stands in
    them where they are not. A graph without a batch dimension says so, and why, in `parameters`.
    """
    artifact = variant.loaded.predictor.artifact
    batcher = variant.loaded.batcher
    is_onnx = artifact.flavor != "python_function"
    document: dict[str, Any] = {
        "name": variant.endpoint,
        "platform": "onnxruntime_onnx" if is_onnx else "python_function",
        "backend": "onnxruntime" if is_onnx else "python",
        "version_policy": _version_policy(versions),
        "max_batch_size": batcher.policy.max_batch_size if batcher else 0,
        "input": _tensors(artifact.inputs, batcher is not None),
        "output": _tensors(artifact.outputs, batcher is not None),
        "instance_group": [
            {
                "name": variant.endpoint,
                "kind": "KIND_CPU" if server.device == "cpu" else "KIND_GPU",
                "count": server.workers,
            }
        ],
        "default_model_filename": artifact.onnx_file.name if is_onnx else "",
    }
    if reason := no_batch_dimension_reason(artifact):
        document["parameters"] = {"batch_dimension": {"string_value": f"none: {reason}"}}
    if batcher is not None:
        document["dynamic_batching"] = {
            "preferred_batch_size": list(batcher.policy.preferred_batch_size),
            "max_queue_delay_microseconds": batcher.policy.max_queue_delay_microseconds,
            "default_queue_policy": {
                "default_timeout_microseconds": server.default_timeout_microseconds,
                "max_queue_size": batcher.policy.max_queue_size,
            },
        }
    return document


def _tensors(entries: Iterable[Input | Output], is_batched: bool) -> list[dict[str, Any]]:
    """Tensors with a data type in V2; Triton calls text TYPE_STRING here, and BYTES everywhere else."""
    return [
        {
            "name": entry.name,
            "data_type": f"TYPE_{datatype_of(entry.dtype)}".replace("BYTES", "STRING"),
            **_shape(entry.shape[1:] if is_batched else entry.shape),
        }
        for entry in entries
        if datatype_of(entry.dtype)
    ]


def _shape(dims: tuple[int, ...]) -> dict[str, Any]:
    """Triton's `dims` are never empty: a tensor without any is said to be reshaped to nothing."""
    return {"dims": list(dims)} if dims else {"dims": [1], "reshape": {"shape": []}}


def _version_policy(versions: Sequence[str]) -> dict[str, Any]:
    """Triton's versions are numbers; a model that is not registered has none."""
    if all(version.isascii() and version.isdigit() and len(version) <= _INT64_DIGITS for version in versions):
        return {"specific": {"versions": [int(version) for version in versions]}}
    return {"latest": {"num_versions": len(versions)}}
