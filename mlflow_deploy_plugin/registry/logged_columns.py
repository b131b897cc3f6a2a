"""The columns that the inference log will have of a model, as its MLmodel file says them; nothing else is fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.registry.connection import registry_errors
from mlflow_deploy_plugin.runtime.artifact import FLAVOR
from mlflow_deploy_plugin.runtime.rows import OUTPUT_PREFIX, PREDICTION


@dataclass(frozen=True)
class LoggedColumns:
    """Columns of one model.

    Attributes:
        inputs: of the signature; empty where there is none, or its only tensor has no name.
        answers: `prediction`, `output.NAME`; None: the file does not say them (any flavor but ours).
    """

    inputs: tuple[str, ...]
    answers: tuple[str, ...] | None


def logged_columns(source: str) -> LoggedColumns:
    """Return the columns of the model at `source` (of a `ResolvedModel`).

    Raises:
        NotFound: it has no MLmodel file.
        RegistryUnavailable: MLflow, or the artifact store behind it, does not answer.
    """
    from mlflow.models import get_model_info  # a second; few commands need it

    with registry_errors(f"the model {source}"):
        info = get_model_info(source)
    inputs = info.signature.inputs if info.signature is not None else None
    names = inputs.input_names() if inputs is not None and inputs.has_input_names() else []
    return LoggedColumns(tuple(map(str, names)), _answers(info.flavors.get(FLAVOR)))


def _answers(section: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    if section is None:
        return None
    prediction = tuple(section.get("prediction") or ())
    outputs: Sequence[Mapping[str, Any]] = section.get("outputs") or ()
    return tuple(
        PREDICTION if prediction == (one["name"],) and len(one["shape"]) == 1 else OUTPUT_PREFIX + one["name"]
        for one in outputs
    )
