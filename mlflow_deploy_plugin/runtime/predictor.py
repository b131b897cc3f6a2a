"""What the data plane asks of a loaded version, however it computes."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mlflow_deploy_plugin.runtime.artifact import Artifact
from mlflow_deploy_plugin.runtime.schema import Array, Feeds, Schema


class Predictor(Protocol):
    """One version as a function of named arrays; `runtime.model.OnnxModel` is the usual one.

    Attributes:
        artifact: what its folder says, with inputs and outputs bound.
        schema: turns columns, rows or tensors into feeds.
    """

    artifact: Artifact
    schema: Schema

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Computes the named outputs (default: all) for feeds made by `schema`.

        Raises:
            InferenceError: the model refuses the input.
        """
        ...

    def prediction(self, outputs: Mapping[str, Array]) -> Array | dict[str, Array]:
        """What `predict` answers, from the outputs of `run`."""
        ...
