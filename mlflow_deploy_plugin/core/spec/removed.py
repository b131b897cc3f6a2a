"""The fields and values that specs no longer have, with their replacements.

A spec that a user gives is refused, and the message names the replacement. A spec that
an older version has stored is read without the removed fields, so that a newer version
reads every stored spec.
"""

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mlflow_deploy_plugin.core.spec.types import SMALLEST_ROLLING_RATE

_log = logging.getLogger(__name__)


_OPENVINO = "OpenVINOExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Removed:
    """The replacement of a removed field or value.

    Attributes:
        advice: the instruction for a user.
        replace: sets the fields that a stored spec gets instead. The argument is the
            mapping that had the removed field.
    """

    advice: str
    replace: Callable[[dict[str, Any]], None] = lambda _: None


def _list_openvino(server: dict[str, Any]) -> None:
    server["providers"] = [{_OPENVINO: {}}]


def _list_tensorrt(server: dict[str, Any]) -> None:
    """Set a list of providers with the options of the device. All workers use its first
    GPU, without CUDA graphs. Invalid options remain, and are refused later.
    """
    gpu: dict[str, object] = {}
    cuda: dict[str, object] = {}
    device_ids = server.get("device_ids")
    if isinstance(device_ids, list):
        del server["device_ids"]
        if device_ids:
            gpu["device_id"] = device_ids[0]
    if isinstance(server.get("provider_options"), dict):
        cuda = server.pop("provider_options")
        cuda.pop("enable_cuda_graph", None)
    set_options = {name: value for name, value in cuda.items() if value is not None}
    server["providers"] = [{_TENSORRT: gpu}, {_CUDA: set_options | gpu}]


def _judge_all_outputs(monitor: dict[str, Any]) -> None:
    """Judge the predictions by drift: the columns that the spec lists, otherwise all
    columns of predictions.
    """
    monitor["kind"] = "drift"
    monitor["columns"] = monitor.get("columns") or ["prediction", "output"]


def _judge_quality(monitor: dict[str, Any]) -> None:
    """Judge the requirements by drift. With a rolling reference, drift has a minimum
    rate of false alarms, which the removed kind did not have.
    """
    monitor["kind"] = "drift"
    is_rolling = str(monitor.get("reference")).startswith("rolling:")
    if is_rolling and monitor.get("false_alarm_rate", 1) < SMALLEST_ROLLING_RATE:
        monitor["false_alarm_rate"] = SMALLEST_ROLLING_RATE


_OF_TENSORRT = f"set the option of {_TENSORRT} in server.providers of a spec file"
_REMOVED = {
    "server.device=openvino": Removed(
        f"use a server with -C server.providers={_OPENVINO}, which is as strict",
        _list_openvino,
    ),
    "server.io_binding": Removed(
        "omit it, because it was slower; server.provider_options.enable_cuda_graph makes some "
        "models faster, and large batches slower",
    ),
    "server.provider_options.trt_fp16_enable": Removed(_OF_TENSORRT),
    "server.provider_options.trt_engine_cache_path": Removed(_OF_TENSORRT),
    # The device follows its options, because its list of providers gets the rest.
    "server.device=tensorrt": Removed(
        f"use a server with -C server.providers={_TENSORRT},{_CUDA}, which is as strict",
        _list_tensorrt,
    ),
    "monitors.*.kind=prediction_drift": Removed(
        "use kind drift with columns=prediction or the names of other outputs",
        _judge_all_outputs,
    ),
    "monitors.*.kind=data_quality": Removed(
        "use kind drift, which finds the same and accepts the same requirements",
        _judge_quality,
    ),
}
"""The removed fields, as `FIELD`, and the removed values of fields, as `FIELD=VALUE`.
`*` is any name.
"""


def removal_reason(dotted: str, value: object = None) -> str:
    """Return why a field or its value is refused, with the replacement. Return an empty
    text if it was not removed.
    """
    names = {_pattern(dotted): dotted}
    if isinstance(value, str):
        names[f"{_pattern(dotted)}={value}"] = f"{dotted}={value}"
    for pattern, name in names.items():
        if pattern in _REMOVED:
            return f"{name} was removed: {_REMOVED[pattern].advice}"
    return ""


def _pattern(dotted: str) -> str:
    """Return the field with `*` for the name of a monitor."""
    return re.sub(r"^monitors\.[^.]+\.", "monitors.*.", dotted)


def without_removed(document: object) -> object:
    """Return a stored spec, as plain values, without the removed fields and values. Log
    a warning if one was set.
    """
    converted = copy.deepcopy(document)
    for name, removed in _REMOVED.items():
        dotted, _, value = name.partition("=")
        *parents, leaf = dotted.split(".")
        for part in _parts(converted, parents):
            if leaf not in part or (value and part[leaf] != value):
                continue
            if part.pop(leaf):
                _warn_once(name)
            removed.replace(part)
    return converted


def _parts(document: object, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the mappings at the path of `names`, where `*` is any name."""
    if not isinstance(document, dict):
        return
    if not names:
        yield document
        return
    first, *rest = names
    for name in document if first == "*" else [first]:
        yield from _parts(document.get(name), rest)


@cache
def _warn_once(name: str) -> None:
    """Log that stored specs have a removed field. The controller reads every spec every
    few seconds.
    """
    dotted, _, value = name.partition("=")
    reason = removal_reason(dotted, value)
    _log.warning("a stored spec is read without a removed field: %s", reason)
