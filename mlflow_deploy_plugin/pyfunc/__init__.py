"""The side processes of a worker: mlflow, pandas and shap live here, not in the worker.

`Scorer` is loaded on first use, because mlflow.pyfunc takes a second.
"""

from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.pyfunc.process import RequestRefused, one_line

if TYPE_CHECKING:
    from mlflow_deploy_plugin.pyfunc.scorer import Scorer

__all__ = ["RequestRefused", "Scorer", "one_line"]


def __getattr__(name: str) -> Any:
    if name == "Scorer":
        from mlflow_deploy_plugin.pyfunc.scorer import Scorer

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
