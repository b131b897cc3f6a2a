"""The ClusterServingRuntime, which KServe selects for InferenceServices by their format
and protocol.

https://kserve.github.io/website/docs/concepts/resources/servingruntime has its rules.
"""

import json
import sys
from collections.abc import Mapping
from importlib.resources import files
from string import Template

import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.spec.document import new_endpoint

_IMAGE = "onnxserve:runtime"
_VARIABLES = "container.environment."
_FIELDS = ("container.image", "container.cpus", "container.memory_bytes")
_CPUS = 1.0
_MEMORY_BYTES = 2 * 1024**3
"""The limits of KServe's own runtimes of these formats (config/runtimes)."""
_DEFAULTS = {"ALLOW_PICKLE": "true", "ONNXSERVE_METRICS_NAMES": "mlserver"}
"""The variables that the file explains."""


def _quoted(text: str) -> str:
    """Return a text as one line of YAML, in ASCII. JSON would write a character above
    U+FFFF as two, which YAML refuses.
    """
    return yaml.safe_dump(text, default_style='"', width=sys.maxsize).strip()


def cluster_runtime(config: Mapping[str, str], auto_select: bool) -> Mapping[str, str]:
    """Return the file of the runtime (path → text).

    Args:
        config: fields of `container` (field → value), as in `-C`.
        auto_select: True to let KServe select the runtime for InferenceServices that
            name none.

    Raises:
        InvalidConfig: a field is unknown, or is not one of the runtime's.
    """
    others = [name for name in config if name not in _FIELDS and not name.startswith(_VARIABLES)]
    if others:
        raise InvalidConfig(
            f"{others[0]} is not a field of a runtime: set {join_names([*_FIELDS, _VARIABLES])}NAME"
        )
    container = new_endpoint("onnxserve", "/mnt/models", config).container
    variables = {**_DEFAULTS, **container.environment}
    # Kubernetes reads "$$" as "$".
    quoted = {name: _quoted(value.replace("$", "$$")) for name, value in variables.items()}
    added = [name for name in container.environment if name not in _DEFAULTS]
    text = (files(__package__) / "runtime.yaml").read_text()
    rendered = Template(text).substitute(
        auto_select=json.dumps(auto_select),
        image=_quoted(container.image or _IMAGE),
        allow_pickle=quoted["ALLOW_PICKLE"],
        metrics_names=quoted["ONNXSERVE_METRICS_NAMES"],
        environment="".join(
            f"    - {{name: {_quoted(name)}, value: {quoted[name]}}}\n" for name in added
        ),
        cpus=json.dumps(f"{round(1000 * (container.cpus or _CPUS))}m"),
        memory=json.dumps(str(container.memory_bytes or _MEMORY_BYTES)),
    )
    return {"onnxserve.runtime.yaml": rendered}
