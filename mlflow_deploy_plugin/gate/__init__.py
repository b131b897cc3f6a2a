"""The gate: what a version of a model has to prove before it is promoted, and the promotion itself.

A name is imported from its module on first use. The console needs the policies only, and must not wait for mlflow and
pandas; the process that measures a model (`gate/measure.py`) must not hold them in memory.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_deploy_plugin.gate.policy import (
        GatePolicy,
        Permissions,
        PolicyChoice,
        choose_policy,
        parse_policy,
        policy_from_tags,
        require_mlflow_artifact,
    )
    from mlflow_deploy_plugin.gate.promotion import Promotion, promote
    from mlflow_deploy_plugin.gate.report import verdict_as_json
    from mlflow_deploy_plugin.gate.run import GateRun, gate_version, run_gate, verdict_of_served
    from mlflow_deploy_plugin.gate.verdict import GateVerdict

__all__ = [
    "GatePolicy",
    "GateRun",
    "GateVerdict",
    "Permissions",
    "PolicyChoice",
    "Promotion",
    "choose_policy",
    "gate_version",
    "parse_policy",
    "policy_from_tags",
    "promote",
    "require_mlflow_artifact",
    "run_gate",
    "verdict_as_json",
    "verdict_of_served",
]

_MODULES = ("policy", "verdict", "report", "run", "promotion")
"""In this order a name's module is found before a heavier one is imported."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
