"""PyfuncPredictor: a loaded version without an ONNX form, with functions for named
arrays and for bodies.
"""

import logging
import math
import sys
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.model_code import WITHOUT_ONNX, require_model_code
from mlflow_deploy_plugin.serve.models.side_process import SideProcess
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody, OpaqueResponse
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import UNNAMED_OUTPUT
from mlflow_deploy_plugin.serve.runtime.schemas.keyed_schema import add_keys
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[2]
_IN_ENVIRONMENT = f"""
import sys
sys.path.insert(0, sys.argv.pop(1))
import {_PACKAGE.name}
del sys.path[0]
from {_PACKAGE.name}.serve.pyfunc.__main__ import main
main()
"""
"""The program of a process in an environment without this package. It imports only this
package from the server's packages, which follows as the first argument.
"""


class PyfuncPredictor:
    """A model that runs in its own process (`mlflow_deploy_plugin.serve.pyfunc`), which
    ends with this object.

    If the signature has no outputs, they are taken from the first response. `schema`
    rejects all feeds if the model does not accept named arrays.
    """

    def __init__(
        self, artifact: Artifact, process: SideProcess, answered: Mapping[str, Array]
    ) -> None:
        self._process = process
        self._most_values = sys.maxsize
        if artifact.outputs:
            self.artifact = artifact
        else:
            self.artifact = replace(artifact, prediction=(UNNAMED_OUTPUT,))
        self._source = "but its signature has"
        self._learn_outputs(answered, "but its own example returned")
        self.schema = pyfunc_schema(artifact)
        weakref.finalize(self, process.close)

    @classmethod
    def load(
        cls, artifact: Artifact, timeout_seconds: float, concurrency: int = 1, python: str = ""
    ) -> "PyfuncPredictor":
        """Start the process, with the server's own Python or another `python`, and wait
        until the model has answered its example. Raises CodeRefused if model code is
        switched off, and InvalidArtifact if the start fails.
        """
        if artifact.runs_code:
            require_model_code(WITHOUT_ONNX)
        # With -B, an import of the model's code does not change its folder.
        if python:
            command = [python, "-B", "-c", _IN_ENVIRONMENT, str(_PACKAGE.parent)]
        else:
            command = [sys.executable, "-B", "-m", _PACKAGE.name + ".serve.pyfunc"]
        command.append(str(artifact.folder))
        process = SideProcess(command, timeout_seconds, concurrency=concurrency)
        ready = process.start()
        logger.info("process %s runs the pyfunc in %s", process.pid, artifact.folder)
        return cls(artifact, process, ready.arrays["outputs"])

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def unavailable_reason(self) -> str:
        return self._process.unavailable_reason

    @property
    def queue_seconds(self) -> float:
        return self._process.queue_seconds

    def limit_values(self, most: int, batch_rows: int = 1) -> None:
        """Refuse responses of more than `most` values, multiplied by `batch_rows` for a
        batch, before they are encoded or sent.
        """
        self._most_values = most * batch_rows

    def run(
        self,
        feeds: Feeds,
        outputs: Sequence[str] | None = None,
        deadline: float = math.inf,
        parameters: Mapping[str, object] | None = None,
    ) -> dict[str, Array]:
        """Run like `Predictor.run`; the model receives the `parameters` that are params
        of its signature.

        Raises:
            SchemaMismatch, InferenceError: the model rejects the input, or its outputs
                differ from earlier outputs.
            BodyTooLarge: the response has more values than `limit_values` allows.
            NotReady: the process is starting, or exited during this request.
            DeadlineExceeded: the process was not free, or did not answer, in time.
            TooManyRequests: other requests kept the process busy.
        """
        fields = {"most_values": self._most_values, "parameters": dict(parameters or {})}
        answer = self._process.request(SideMessage("predict", fields, {"feeds": feeds}), deadline)
        computed = dict(answer.arrays["outputs"])
        self._learn_outputs(computed)
        expected_names = self.artifact.prediction
        if len(computed) == 1 and len(expected_names) == 1:
            computed = {expected_names[0]: next(iter(computed.values()))}
        if computed.keys() != set(expected_names):
            actual = join_names(map(repr, computed))
            expected = join_names(map(repr, expected_names))
            raise InferenceError(
                f"the model returns {actual}, {self._source} {expected}; send it to /invocations, "
                "as JSON or CSV"
            )
        if outputs is None:
            outputs = expected_names
        return {name: computed[name] for name in outputs}

    def prediction(
        self, outputs: Mapping[str, Array], of_table: bool = False
    ) -> Array | dict[str, Array]:
        """Return the only output, or all outputs by name."""
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return dict(outputs)

    def answer(
        self, body: OpaqueBody, deadline: float = math.inf, prediction_id: str = ""
    ) -> OpaqueResponse:
        """Answer a body of `/invocations` with MLflow's scoring functions;
        `prediction_id` tags the model's traces.

        Raises the errors of `SideProcess.request`, and BodyTooLarge if the response has
        more values than `limit_values` allows. If MLflow rejects the body,
        InvalidRequest, UnsupportedMediaType or InferenceError is raised.
        """
        answer = self._process.request(self._message("invocations", body, prediction_id), deadline)
        outputs = dict(answer.arrays.get("outputs", {}))
        self._learn_outputs(outputs)
        captured_outputs = outputs or dict(answer.arrays.get("texts", {}))
        return OpaqueResponse(answer.body, _captured_feeds(answer), captured_outputs)

    def stream(
        self, body: OpaqueBody, deadline: float = math.inf, prediction_id: str = ""
    ) -> Generator[OpaqueResponse, None, None]:
        """Yield the parts of the response as JSON; the first part has the feeds. Raises
        the errors of `answer`.
        """
        with closing(
            self._process.stream(self._message("stream", body, prediction_id), deadline)
        ) as parts:
            for part in parts:
                yield OpaqueResponse(part.body, _captured_feeds(part), {})

    def _message(self, kind: str, body: OpaqueBody, prediction_id: str) -> SideMessage:
        fields = {
            "content_type": body.content_type,
            "most_values": self._most_values,
            "prediction_id": prediction_id,
            "keys": body.keys,
        }
        return SideMessage(kind, fields, body=body.content)

    def _learn_outputs(
        self, computed: Mapping[str, Array], source: str = "but its first request returned"
    ) -> None:
        """Use the outputs of the first response as the outputs of the model, unless the
        model's outputs are known.
        """
        if self.artifact.outputs or not computed:
            return
        outputs = []
        for name, array in computed.items():
            dtype = "str" if array.dtype.kind == "O" else array.dtype.name
            outputs.append(Output(name, dtype, (-1, *array.shape[1:])))
        self._source = source
        self.artifact = replace(self.artifact, outputs=tuple(outputs), prediction=tuple(computed))


def _captured_feeds(answer: SideMessage) -> Feeds:
    """Return the arrays of a request for the log: the keys, and the inputs if arrays
    can represent the inputs.
    """
    feeds = dict(answer.arrays["feeds"])
    keys = dict(answer.arrays.get("keys", {}))
    if feeds and keys:
        return add_keys(feeds, keys)
    return feeds or keys
