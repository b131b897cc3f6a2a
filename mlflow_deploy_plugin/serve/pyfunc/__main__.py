"""`python -m mlflow_deploy_plugin.serve.pyfunc FOLDER DESCRIPTOR`: the side process of
a worker (`serve/pyfunc/process.py`) that predicts with the model in FOLDER, which has
no ONNX form.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidArtifact, pass_exit
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.serve.protocols import side_messages
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.pyfunc.process import (
    Answer,
    answer_all,
    error_summary,
    load_failure,
    version_differences,
)

_log = logging.getLogger("mlflow_deploy_plugin.serve.pyfunc")

_SERVING = {
    "_MLFLOW_IS_IN_SERVING_ENVIRONMENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    MODEL_CODE: "true",
}
"""Environment variables for the model. MLflow's scoring server also sets the first
variable, and models may read it. The worker has checked that this model may run.
"""
_PREDICTION_ID = "onnxserve.prediction_id"
"""The tag of an MLflow trace that contains the ID of the prediction."""
_EXPERIMENT_SECONDS = 2.0
"""The maximum time that the start waits for MLflow to find the experiment of the
traces.
"""
_RETRY_SECONDS = 60.0


def main() -> None:
    answer_all(int(sys.argv[2]), "pyfunc", partial(start_scorer, Path(sys.argv[1])))


def start_scorer(folder: Path) -> tuple[SideMessage, Answer]:
    """Load the model, and return the ready message and the function that answers
    requests. Raises InvalidArtifact.
    """
    os.environ.update(_SERVING)
    # like the server; MLflow's default is gRPC
    os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    for name in ("mlflow.pyfunc.scoring_server", "mlflow.models.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)  # Each refused request would log a warning.
    try:
        from mlflow.tracing import context as tracing_context

        # The image lacks mlflow and pandas.
        from mlflow_deploy_plugin.serve.pyfunc.scorer import Scorer
    except ImportError as error:
        raise InvalidArtifact(
            "a model without an ONNX form needs mlflow and pandas, which are not fully installed "
            f"here ({error}): pip install mlflow, build an image with `onnxserve build-docker "
            "MODEL --env-manager uv`, or log the model with onnxserve.log_model"
        ) from None
    lookup = threading.Thread(target=find_experiment, daemon=True)
    lookup.start()
    lookup.join(_EXPERIMENT_SECONDS)
    try:
        scorer = Scorer.load(folder)
    except ImportError as error:
        _log.exception(
            "the model cannot be loaded; its requirements are in %s", folder / "requirements.txt"
        )
        needed = f"the Python module {error.name!r}" if error.name else error_summary(error)
        differences = ", ".join(version_differences(folder).values())
        logged = f" (it was logged with {differences})" if differences else ""
        raise InvalidArtifact(
            f"the model needs {needed}, which is not installed here{logged}: run `pip install -r` "
            "with the file from `mlflow.pyfunc.get_model_dependencies(MODEL_URI)`; to include "
            "your own modules in the model, log it with `code_paths`"
        ) from None
    except BaseException as error:  # noqa: BLE001 - loading runs the model's code
        pass_exit(error)
        _log.exception("the model cannot be loaded")
        raise InvalidArtifact(
            f"MLflow cannot load the model: {load_failure(error, folder)}"
        ) from None

    def answer(question: SideMessage) -> Iterator[SideMessage]:
        """Yield the answer to named arrays or to a body of `/invocations`."""
        most = question.fields["most_values"]
        if question.kind == "predict":
            yield scorer.predict(question.arrays["feeds"], most, question.fields["parameters"])
            return
        content_type = question.fields["content_type"]
        keys = question.fields["keys"]
        with tracing_context(tags={_PREDICTION_ID: question.fields["prediction_id"]}):
            if question.kind == "stream":
                yield from scorer.stream(content_type, question.body, most, keys)
            else:
                yield scorer.invoke(content_type, question.body, most, keys)

    return SideMessage(side_messages.READY_MESSAGE, arrays={"outputs": scorer.warm_up()}), answer


def find_experiment() -> None:
    """Find the experiment of the traces once. MLflow would search in each request, and
    a failure takes minutes.
    """
    import mlflow  # optional package

    identity = os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    name = os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)
    if name:
        identity = None
    while name or identity:
        try:
            mlflow.set_experiment(name, identity)
            return
        except mlflow.MlflowException as error:
            _log.warning(
                "traces are logged to the experiment Default until %s is found: %s",
                name or identity,
                error,
            )
            time.sleep(_RETRY_SECONDS)


if __name__ == "__main__":
    main()
