"""The fields and values that specs no longer have, with their replacements.

A spec that a user gives is refused, and the message names the replacement. A spec that
an older version has stored is read without the removed fields, so that a newer version
reads every stored spec.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """The replacement of a removed field or value.

    Attributes:
        advice: the instruction for a user.
        instead: the fields that a stored spec gets instead, next to the removed field.
    """

    advice: str
    instead: Mapping[str, object] = field(default_factory=dict)


_OPENVINO = "OpenVINOExecutionProvider"
_OF_TENSORRT = "set the option of TensorrtExecutionProvider in server.providers of a spec file"
_REMOVED = {
    "server.device=openvino": Removed(
        f"use a server with -C server.providers={_OPENVINO}, which is as strict",
        {"providers": [{_OPENVINO: {}}]},
    ),
    "server.io_binding": Removed(
        "omit it, because it was slower; server.provider_options.enable_cuda_graph makes small "
        "models faster",
    ),
    "server.provider_options.trt_fp16_enable": Removed(_OF_TENSORRT),
    "server.provider_options.trt_engine_cache_path": Removed(_OF_TENSORRT),
}
"""The removed fields, as `FIELD`, and the removed values of fields, as `FIELD=VALUE`.
"""


def removal_reason(dotted: str, value: object = None) -> str:
    """Return why a field or its value is refused, with the replacement. Return an empty
    text if it was not removed.
    """
    for name in (dotted, f"{dotted}={value}" if isinstance(value, str) else ""):
        if name in _REMOVED:
            return f"{name} was removed: {_REMOVED[name].advice}"
    return ""


def without_removed(document: object) -> object:
    """Return a stored spec, as plain values, without the removed fields and values. Log
    a warning if one was set.
    """
    converted = copy.deepcopy(document)
    for name, removed in _REMOVED.items():
        dotted, _, value = name.partition("=")
        *parents, leaf = dotted.split(".")
        part: object = converted
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if not isinstance(part, dict) or leaf not in part or (value and part[leaf] != value):
            continue
        if part.pop(leaf):
            _warn_once(name)
        part.update(removed.instead)
    return converted


@cache
def _warn_once(name: str) -> None:
    """Log that stored specs have a removed field. The controller reads every spec every
    few seconds.
    """
    _log.warning("a stored spec is read without a removed field: %s", removal_reason(name))
