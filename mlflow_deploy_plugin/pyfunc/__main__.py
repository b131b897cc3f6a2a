"""`python -m mlflow_deploy_plugin.pyfunc FOLDER DESCRIPTOR`: answers for the model in FOLDER (`pyfunc/process.py`)."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.pyfunc.process import Answer, CannotStart, answer_all, one_line
from mlflow_deploy_plugin.server import READY_MESSAGE, SideMessage

if TYPE_CHECKING:
    from mlflow_deploy_plugin.pyfunc.scorer import Scorer

_log = logging.getLogger("mlflow_deploy_plugin.pyfunc")

_SERVING = {"_MLFLOW_IS_IN_SERVING_ENVIRONMENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""MLflow's own scoring server sets the first, too: models may read it."""


def main() -> None:
    answer_all(int(sys.argv[2]), "pyfunc", partial(_start, Path(sys.argv[1])))


def _start(folder: Path) -> tuple[SideMessage, Answer]:
    os.environ.update(_SERVING)
    logging.getLogger("mlflow.pyfunc.scoring_server").setLevel(logging.ERROR)  # it warns at every refused request
    scorer = _load(folder)
    return SideMessage(READY_MESSAGE, {"outputs": scorer.warm_up()}), partial(_answer, scorer)


def _load(folder: Path) -> "Scorer":
    """Load the model.

    Raises:
        CannotStart: it cannot be loaded.
    """
    try:
        from mlflow_deploy_plugin.pyfunc.scorer import Scorer  # what it imports may be missing, as in the image
    except ImportError as error:
        raise CannotStart(
            f"a model without an ONNX form needs mlflow and pandas, which are not installed here whole ({error}): "
            "pip install mlflow, or log the model with mlflow_deploy_plugin.log_model"
        ) from None
    try:
        return Scorer.load(folder)
    except ImportError as error:
        needed = f"the Python package {error.name!r}" if error.name else one_line(error)
        _log.exception("the model cannot be loaded; what it needs is in %s", folder / "requirements.txt")
        raise CannotStart(
            f"the model needs {needed}, which is not installed here: "
            "`pip install -r` the file that `mlflow.pyfunc.get_model_dependencies(MODEL_URI)` answers"
        ) from None
    except Exception as error:  # noqa: BLE001 - loading runs the model's code
        _log.exception("the model cannot be loaded")
        raise CannotStart(f"MLflow cannot load the model: {one_line(error)}") from None


def _answer(scorer: "Scorer", question: SideMessage) -> SideMessage:
    if question.kind == "invocations":
        return scorer.invoke(question.fields["content_type"], question.body)
    return scorer.predict(question.arrays["feeds"])


if __name__ == "__main__":
    main()
