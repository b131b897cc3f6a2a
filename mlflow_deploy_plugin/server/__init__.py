"""SERVE: requests in, answers out. Imports neither mlflow nor pandas.

These are the names that other rooms use. Each is imported from its module on first use: a side process must not load
the supervisor, nor the command line the data plane.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy_plugin.server.capture.feedback import Feedback, FeedbackFrame
    from mlflow_deploy_plugin.server.capture.frames import SHIPPED, SUFFIX, is_released, segments, shipped_bytes
    from mlflow_deploy_plugin.server.capture.masking import MASK_KEY, ColumnMask
    from mlflow_deploy_plugin.server.capture.reader import CapturedBatch, CapturedSegment, Utf8Array, read_batches
    from mlflow_deploy_plugin.server.clouds import Cloud, read_cloud
    from mlflow_deploy_plugin.server.device import require_device
    from mlflow_deploy_plugin.server.inference.shadow_compare import compare_outputs
    from mlflow_deploy_plugin.server.models.explainable import (
        ExplainedFeature,
        explained_features,
        explained_names,
        explained_numbers,
        explained_outputs,
    )
    from mlflow_deploy_plugin.server.models.loading import INPUT_EXAMPLE
    from mlflow_deploy_plugin.server.models.model_control import (
        MAX_COMMAND_AGE_SECONDS,
        MAX_COMMAND_BYTES,
        MAX_WAITING,
        command_answer,
        command_files,
    )
    from mlflow_deploy_plugin.server.models.side_messages import SideMessage, receive_message, send_message
    from mlflow_deploy_plugin.server.models.side_process import FAILED_MESSAGE, READY_MESSAGE
    from mlflow_deploy_plugin.server.observability.capture_counters import (
        CaptureCounters,
        read_capture_counters,
        saved_capture_counters,
    )
    from mlflow_deploy_plugin.server.protocols.arrow import PARQUET
    from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, load_json
    from mlflow_deploy_plugin.server.supervisor import claim_state_dir, supervise

__all__ = [
    "CSV",
    "FAILED_MESSAGE",
    "INPUT_EXAMPLE",
    "JSON",
    "MASK_KEY",
    "MAX_COMMAND_AGE_SECONDS",
    "MAX_COMMAND_BYTES",
    "MAX_WAITING",
    "PARQUET",
    "READY_MESSAGE",
    "SHIPPED",
    "SUFFIX",
    "CaptureCounters",
    "CapturedBatch",
    "CapturedSegment",
    "Cloud",
    "ColumnMask",
    "ExplainedFeature",
    "Feedback",
    "FeedbackFrame",
    "SideMessage",
    "Utf8Array",
    "claim_state_dir",
    "command_answer",
    "command_files",
    "compare_outputs",
    "explained_features",
    "explained_names",
    "explained_numbers",
    "explained_outputs",
    "is_released",
    "load_json",
    "read_batches",
    "read_capture_counters",
    "read_cloud",
    "receive_message",
    "require_device",
    "saved_capture_counters",
    "segments",
    "send_message",
    "shipped_bytes",
    "supervise",
]

_MODULES = {
    "capture.feedback": ("Feedback", "FeedbackFrame"),
    "capture.frames": ("SHIPPED", "SUFFIX", "is_released", "segments", "shipped_bytes"),
    "capture.masking": ("MASK_KEY", "ColumnMask"),
    "capture.reader": ("CapturedBatch", "CapturedSegment", "Utf8Array", "read_batches"),
    "clouds": ("Cloud", "read_cloud"),
    "device": ("require_device",),
    "inference.shadow_compare": ("compare_outputs",),
    "models.explainable": (
        "ExplainedFeature",
        "explained_features",
        "explained_names",
        "explained_numbers",
        "explained_outputs",
    ),
    "models.loading": ("INPUT_EXAMPLE",),
    "models.model_control": (
        "MAX_COMMAND_AGE_SECONDS",
        "MAX_COMMAND_BYTES",
        "MAX_WAITING",
        "command_answer",
        "command_files",
    ),
    "models.side_messages": ("SideMessage", "receive_message", "send_message"),
    "models.side_process": ("FAILED_MESSAGE", "READY_MESSAGE"),
    "observability.capture_counters": ("CaptureCounters", "read_capture_counters", "saved_capture_counters"),
    "protocols.arrow": ("PARQUET",),
    "protocols.content": ("CSV", "JSON", "load_json"),
    "supervisor": ("claim_state_dir", "supervise"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
