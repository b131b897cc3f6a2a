"""A loaded pyfunc: it answers bodies as MLflow's scoring server does, and predicts for named arrays.

MLflow's own functions read the body of `/invocations` and write its answer
(`mlflow/pyfunc/scoring_server/__init__.py`, 3.17), so that this server takes whatever that one takes. Only refusals are
ours: bad input that MLflow answers with a 5xx is a 400, and no answer holds a traceback.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model, scoring_server

from mlflow_deploy_plugin.pyfunc.arrays import NotRepresentable, to_feeds, to_model_input, to_outputs
from mlflow_deploy_plugin.pyfunc.process import RequestRefused, clean_message, one_line
from mlflow_deploy_plugin.runtime import Array, Artifact, read_served_artifact
from mlflow_deploy_plugin.server import INPUT_EXAMPLE, SideMessage

_log = logging.getLogger(__name__)

_JSON = "application/json"


class _Recorder:
    """The model as MLflow's `invocations` calls it. It keeps its input, its output and its error."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.metadata = model.metadata
        self.data: Any = None
        self.prediction: Any = None
        self.error: BaseException | None = None

    def predict(self, data: Any, params: Any = None) -> Any:
        self.data = data
        try:
            self.prediction = self._model.predict(data, params=params)
        except MlflowException:
            raise
        except (Exception, SystemExit) as error:
            self.error = error
            raise RuntimeError from error  # MLflow's server would catch an Exception and hide it
        return self.prediction


class Scorer:
    """A loaded model. `invoke` and `predict` raise `RequestRefused`."""

    def __init__(self, model: Any, artifact: Artifact) -> None:
        self._model = model
        self._artifact = artifact
        self._schema = model.metadata.get_input_schema()
        self._types: dict[str, str] = {}
        self._is_named = True
        if artifact.columns:
            kinds = [kind.name for kind in self._schema.input_types()]
            self._types = dict(zip((column.name for column in artifact.columns), kinds, strict=True))
            self._is_named = self._schema.has_input_names()
        self._has_warned = False

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Load the MLmodel folder as `mlflow.pyfunc.load_model` does; raises whatever that raises."""
        return cls(load_model(str(folder)), read_served_artifact(folder))

    def warm_up(self) -> list[tuple[str, str, list[int]]]:
        """Answer the model's own example, if it has one, and return name, dtype and shape of each output."""
        example = self._artifact.folder / INPUT_EXAMPLE
        if not example.is_file():
            return []
        try:
            outputs = self.invoke(_JSON, example.read_bytes()).arrays.get("outputs", {})
        except RequestRefused as refusal:
            _log.warning("the model does not answer its own example (%s): %s", INPUT_EXAMPLE, refusal.message)
            return []
        return [
            (name, "str" if array.dtype.kind == "O" else array.dtype.name, [-1, *array.shape[1:]])
            for name, array in outputs.items()
        ]

    def invoke(self, content_type: str | None, body: bytes) -> SideMessage:
        """Answer a body of `/invocations`; the message also has its arrays, as far as they are representable."""
        if not content_type:
            raise RequestRefused("media type", f"the request has no Content-Type; this route takes {_JSON} or text/csv")
        recorder = _Recorder(self._model)
        try:
            answer = scoring_server.invocations(body, content_type, recorder, self._schema)
        except MlflowException as error:
            raise self._refusal(recorder, error) from None
        except Exception as error:  # noqa: BLE001 - MLflow's readers raise whatever a body makes them stumble over
            _log.info("a body could not be read", exc_info=True)
            if recorder.prediction is not None:
                raise RequestRefused("model", f"the model's answer has no form as JSON: {one_line(error)}") from None
            raise RequestRefused("request", f"the body cannot be read: {one_line(error)}") from None
        if answer.status != 200:
            raise RequestRefused("media type" if answer.status == 415 else "request", clean_message(answer.response))
        text = answer.response
        if "NaN" in text or "Infinity" in text:  # MLflow writes them, but they are not JSON: null here
            text = json.dumps(json.loads(text, parse_constant=lambda word: None))
        return SideMessage("answer", arrays=self._log_arrays(recorder), body=text.encode())

    def predict(self, feeds: Mapping[str, Array]) -> SideMessage:
        """Return named outputs for named arrays that fit the signature."""
        data = to_model_input(feeds, self._artifact, self._types, self._is_named)
        recorder = _Recorder(self._model)
        try:
            outputs = to_outputs(recorder.predict(data))
        except (MlflowException, RuntimeError) as error:
            raise self._refusal(recorder, error) from None
        except NotRepresentable as error:
            message = f"the model's answer has no form as named arrays ({error}); send it to /invocations, as JSON"
            raise RequestRefused("model", message) from None
        return SideMessage("answer", arrays={"outputs": outputs})

    def _refusal(self, recorder: _Recorder, error: Exception) -> RequestRefused:
        if recorder.error is not None:
            _log.error("the model refused a request", exc_info=recorder.error)
            return RequestRefused("model", f"the model cannot compute this input: {one_line(recorder.error)}")
        is_read = recorder.data is not None
        return RequestRefused("schema" if is_read else "request", clean_message(str(getattr(error, "message", error))))

    def _log_arrays(self, recorder: _Recorder) -> Mapping[str, Mapping[str, Array]]:
        """Return the arrays that the inference log keeps, and warn once if rows are not representable."""
        arrays: dict[str, Mapping[str, Array]] = {"feeds": {}}
        try:
            if self._artifact.undescribed:
                raise NotRepresentable("its signature has no columns that the inference log knows")
            arrays["feeds"] = to_feeds(recorder.data, self._artifact, self._types)
        except NotRepresentable as error:
            self._warn_once(error)
        try:
            arrays["outputs"] = to_outputs(recorder.prediction)
        except NotRepresentable as error:
            self._warn_once(error)
        return arrays

    def _warn_once(self, reason: NotRepresentable) -> None:
        if not self._has_warned:
            _log.warning("rows of this model, or parts of them, are not captured: %s", reason)
            self._has_warned = True
