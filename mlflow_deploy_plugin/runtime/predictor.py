"""What the data plane asks of a loaded version, however it computes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mlflow_deploy_plugin.runtime.artifact import Artifact
from mlflow_deploy_plugin.runtime.schema import Array, Feeds, Schema


class Predictor(Protocol):
    """One version as a function of named arrays; `runtime.model.OnnxModel` is the usual one.

    Attributes:
        artifact: what its folder says, with inputs and outputs bound.
        schema: turns columns, rows or tensors into feeds.
        waited: the seconds that went by in this thread's last `run` (or `answer`) before its turn had come.
    """

    artifact: Artifact
    schema: Schema

    @property
    def waited(self) -> float: ...

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None, deadline: float = math.inf) -> dict[str, Array]:
        """Computes the named outputs (default: all) for feeds made by `schema`.

        Args:
            deadline: in `time.perf_counter()`: what has to wait for its turn gives up then.

        Raises:
            InferenceError: the model refuses the input.
            DeadlineExceeded: its turn did not come.
        """
        ...

    def prediction(self, outputs: Mapping[str, Array], of_table: bool = False) -> Array | dict[str, Array]:
        """What `predict` answers, from the outputs of `run`; `of_table`: the request was a table."""
        ...


@runtime_checkable
class Remote(Protocol):
    """A predictor that computes in a process of its own, which may be away."""

    @property
    def absence(self) -> str:
        """Why it cannot be asked just now; empty: it can."""
        ...


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request that the version reads itself, since not all that it takes has a form as arrays."""

    content_type: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class BodyAnswer:
    """The JSON that answers a `Body`.

    Attributes:
        feeds / outputs: what of the request and of its answer can be said as arrays, as `Predictor.run` names them;
            empty: nothing.
    """

    content: bytes
    feeds: Feeds
    outputs: dict[str, Array]


@runtime_checkable
class BodyReader(Protocol):
    """A predictor that reads bodies of `/invocations` itself: one whose artifact has the flavor python_function."""

    def answer(self, body: Body, deadline: float = math.inf) -> BodyAnswer:
        """Reads, computes and writes; `deadline` as for `Predictor.run`.

        Raises:
            InvalidRequest, UnsupportedMediaType: the body cannot be read, or does not fit the model.
            InferenceError: the model refuses the input.
        """
        ...
