"""One loaded pyfunc: what MLflow's scoring server does with a body, and predictions for named arrays.

The body of `/invocations` is read, and its answer written, by MLflow's own functions
(`mlflow/pyfunc/scoring_server/__init__.py`, 3.17), so that whatever that server takes is taken here. Only refusals are
ours: what MLflow answers with a 5xx for bad input is a 400, and no answer holds a traceback.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model, scoring_server

from mlflow_deploy_plugin.pyfunc.arrays import NotRepresentable, to_feeds, to_model_input, to_outputs
from mlflow_deploy_plugin.pyfunc.refusal import RefusalKind, RequestRefused, clean_message, one_line
from mlflow_deploy_plugin.runtime import Array, Artifact, Feeds, read_served_artifact
from mlflow_deploy_plugin.server.models.loading import EXAMPLE
from mlflow_deploy_plugin.server.models.side_messages import SideMessage

_log = logging.getLogger(__name__)

_JSON = "application/json"


class _Recorder:
    """The model as MLflow's `invocations` calls it; what goes in and comes out is kept."""

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
            raise RuntimeError from error  # MLflow's server catches what is an Exception, and tells nothing of it
        return self.prediction


class Scorer:
    """A loaded model. Both ways of asking it raise `Refusal`."""

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
        self._is_told = False

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Loads the MLmodel folder as `mlflow.pyfunc.load_model` does, with whatever that raises."""
        return cls(load_model(str(folder)), read_served_artifact(folder))

    def warm_up(self) -> list[tuple[str, str, list[int]]]:
        """Answers the model's own example, if it has one; name, dtype and shape of the outputs that it gave."""
        example = self._artifact.folder / EXAMPLE
        if not example.is_file():
            return []
        try:
            outputs = self.invoke(_JSON, example.read_bytes()).arrays.get("outputs", {})
        except RequestRefused as refusal:
            _log.warning("the model does not answer its own example (%s): %s", EXAMPLE, refusal.message)
            return []
        return [
            (name, "str" if array.dtype.kind == "O" else array.dtype.name, [-1, *array.shape[1:]])
            for name, array in outputs.items()
        ]

    def invoke(self, content_type: str | None, body: bytes) -> SideMessage:
        """The answer to a body of `/invocations`, and, where they can be said, the arrays in it."""
        if not content_type:
            raise RequestRefused("media type", f"the request has no Content-Type; this route takes {_JSON} or text/csv")
        recorder = _Recorder(self._model)
        try:
            answer = scoring_server.invocations(body, content_type, recorder, self._schema)
        except MlflowException as error:
            raise self._refusal(recorder, error) from None
        except Exception as error:  # noqa: BLE001 - MLflow's readers raise whatever a body makes them stumble over
            _log.info("a body could not be read", exc_info=True)
            kind: RefusalKind = "model" if recorder.prediction is not None else "request"
            raise RequestRefused(kind, f"{_STUMBLED[kind]}: {one_line(error)}") from None
        if answer.status != 200:
            raise RequestRefused("media type" if answer.status == 415 else "request", clean_message(answer.response))
        return SideMessage("answer", arrays=self._sayable(recorder), body=_standard_json(answer.response))

    def predict(self, feeds: Mapping[str, Array]) -> SideMessage:
        """Named outputs for named arrays that fit the signature."""
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

    def _sayable(self, recorder: _Recorder) -> Mapping[str, Mapping[str, Array]]:
        """What the inference log keeps; a model whose rows cannot be said is told of once."""
        if self._artifact.undescribed:
            self._tell("its signature has no columns that the inference log knows")
            feeds: Feeds = {}
        else:
            try:
                feeds = to_feeds(recorder.data, self._artifact, self._types)
            except NotRepresentable as error:
                self._tell(str(error))
                feeds = {}
        try:
            return {"feeds": feeds, "outputs": to_outputs(recorder.prediction)}
        except NotRepresentable as error:
            self._tell(str(error))
            return {"feeds": feeds}

    def _tell(self, reason: str) -> None:
        if not self._is_told:
            _log.warning("rows of this model, or parts of them, are not captured: %s", reason)
            self._is_told = True


_STUMBLED: dict[RefusalKind, str] = {
    "model": "the model's answer has no form as JSON",
    "request": "the body cannot be read",
}


def _standard_json(text: str) -> bytes:
    """MLflow writes NaN and Infinity, which are no JSON: null here."""
    if "NaN" in text or "Infinity" in text:
        text = json.dumps(json.loads(text, parse_constant=lambda word: None))
    return text.encode()
