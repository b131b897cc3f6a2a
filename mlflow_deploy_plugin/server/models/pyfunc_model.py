"""PyfuncModel: one loaded version without an ONNX form, as a function of named arrays and of bodies."""

import logging
import math
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mlflow_deploy_plugin.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.runtime import (
    UNNAMED_OUTPUT,
    Array,
    Artifact,
    Feeds,
    OpaqueBody,
    OpaqueResponse,
    Output,
    pyfunc_schema,
)
from mlflow_deploy_plugin.server.models.side_messages import SideMessage
from mlflow_deploy_plugin.server.models.side_process import SideProcess, unless_refused

logger = logging.getLogger(__name__)


class PyfuncPredictor:
    """A model that answers from a process of its own (`mlflow_deploy_plugin.pyfunc`).

    The process ends when nobody holds the model any more.

    Attributes:
        artifact: what its folder says; outputs that the signature does not say are those of the warm-up, or else, once
            there is one, of the first answer.
        schema: turns columns, rows or tensors into feeds; refuses them all where the model takes no named arrays.
    """

    def __init__(self, artifact: Artifact, process: SideProcess, outputs: Sequence[Output]) -> None:
        self._process = process
        self.artifact = replace(artifact, prediction=(UNNAMED_OUTPUT,))
        self._expected = ""
        if artifact.outputs:
            self._learn(artifact.outputs, "its signature says")
        elif outputs:
            self._learn(outputs, "to its own example it answered")
        self.schema = pyfunc_schema(artifact)
        weakref.finalize(self, process.close)

    @classmethod
    def load(cls, artifact: Artifact, answer_seconds: float) -> "PyfuncPredictor":
        """Starts the process and waits until the model is loaded and has answered its own example, if it has one.

        Raises:
            InvalidArtifact: the model cannot be loaded; the message says why.
        """
        command = [sys.executable, "-m", "mlflow_deploy_plugin.pyfunc", str(artifact.folder)]
        process = SideProcess(command, answer_seconds)
        ready = process.start()
        logger.info("process %s answers for the pyfunc in %s", process.pid, artifact.folder)
        outputs = [Output(name, dtype, tuple(shape)) for name, dtype, shape in ready.fields["outputs"]]
        return cls(artifact, process, outputs)

    @property
    def pid(self) -> int | None:
        """The side process that answers now; None: it is being started anew."""
        return self._process.pid

    @property
    def unavailable_reason(self) -> str:
        """Why the side process cannot be asked just now; empty: it can."""
        return self._process.unavailable_reason

    @property
    def queue_seconds(self) -> float:
        """What this thread's last question waited for those before it."""
        return self._process.queue_seconds

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None, deadline: float = math.inf) -> dict[str, Array]:
        """The named outputs (default: all) for feeds made by `schema`.

        Raises:
            SchemaMismatch, InferenceError: the model refuses the input, or answers what is no named array.
            NotReady, DeadlineExceeded, TooManyRequests: see `SideProcess.request`.
        """
        if self.artifact.undescribed:
            raise SchemaMismatch(self.artifact.undescribed)
        answer = self._ask(SideMessage("predict", arrays={"feeds": feeds}), deadline)
        computed = dict(answer.arrays["outputs"])
        self._learn_from(computed)
        known = self.artifact.prediction
        if len(computed) == 1 and len(known) == 1:
            computed = {known[0]: next(iter(computed.values()))}
        if computed.keys() != set(known):
            raise InferenceError(
                f"the model answers {_listed(computed)}, {self._expected}; send it to /invocations, as JSON or CSV"
            )
        return {name: computed[name] for name in (known if outputs is None else outputs)}

    def prediction(self, outputs: Mapping[str, Array], of_table: bool = False) -> Array | dict[str, Array]:
        """The bare array of a single output, a mapping of several."""
        return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)

    def answer(self, body: OpaqueBody, deadline: float = math.inf) -> OpaqueResponse:
        """The answer of MLflow's own scoring functions to a body of `/invocations`.

        Raises:
            InvalidRequest, UnsupportedMediaType, InferenceError: as MLflow refuses it.
            NotReady, DeadlineExceeded, TooManyRequests: see `SideProcess.request`.
        """
        answer = self._ask(SideMessage("invocations", {"content_type": body.content_type}, body=body.content), deadline)
        feeds, outputs = (dict(answer.arrays.get(group, {})) for group in ("feeds", "outputs"))
        self._learn_from(outputs)
        return OpaqueResponse(answer.body, feeds, outputs)

    def _learn_from(self, computed: Mapping[str, Array]) -> None:
        """Takes the first answer for what the model answers, where nothing else has said it."""
        if self.artifact.outputs or not computed:
            return
        said = [
            Output(name, "str" if array.dtype.kind == "O" else array.dtype.name, (-1, *array.shape[1:]))
            for name, array in computed.items()
        ]
        self._learn(said, "to its first request it answered")

    def _learn(self, outputs: Sequence[Output], how: str) -> None:
        names = tuple(output.name for output in outputs)
        self._expected = f"{how} {_listed(names)}"
        self.artifact = replace(self.artifact, outputs=tuple(outputs), prediction=names)

    def _ask(self, question: SideMessage, deadline: float) -> SideMessage:
        return unless_refused(self._process.request(question, deadline))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, list(names)[:10]))
