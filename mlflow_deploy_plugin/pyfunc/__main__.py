"""`python -m mlflow_deploy_plugin.pyfunc FOLDER DESCRIPTOR`: started by a worker (`server/side_process.py`).

Loads the model in FOLDER, and answers the messages that come through the socket DESCRIPTOR one by one, in the main
thread. A second thread reads: when the worker has gone it ends this process and all that the model has started, also
while the model computes.
"""

import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.pyfunc.refusal import Refusal, one_line
from mlflow_deploy_plugin.server.frames import BrokenFrame, Message, receive, send
from mlflow_deploy_plugin.server.side_process import FAILED, READY

if TYPE_CHECKING:
    from mlflow_deploy_plugin.pyfunc.scorer import Scorer

_log = logging.getLogger("mlflow_deploy_plugin.pyfunc")

_PR_SET_PDEATHSIG = 1
_SERVING = {"_MLFLOW_IS_IN_SERVING_ENVIRONMENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""The first as MLflow's own scoring server sets it: models may ask for it."""


def main() -> None:
    folder, connection = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    connection.set_inheritable(False)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a model that never lets go of the GIL dies by this
    questions: queue.Queue[Message] = queue.Queue(1)
    threading.Thread(target=_read, args=(connection, questions), daemon=True).start()
    os.environ.update(_SERVING)
    logging.basicConfig(format=f"%(asctime)s [pyfunc {os.getpid()}] %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mlflow.pyfunc.scoring_server").setLevel(logging.ERROR)  # it warns at every refused request
    scorer = _load(folder)
    if isinstance(scorer, str):
        send(connection, Message(FAILED, {"message": scorer}))
        return
    send(connection, Message(READY, {"outputs": scorer.warm_up()}))
    while True:
        answer = _answer(scorer, questions.get())
        try:
            send(connection, answer)
        except ValueError as error:
            send(connection, Message("refused", {"what": "model", "message": f"the answer is too large: {error}"}))


def _read(connection: socket.socket, questions: "queue.Queue[Message]") -> None:
    """Until the worker has gone."""
    try:
        while (message := receive(connection)) is not None:
            questions.put(message)
    except (OSError, BrokenFrame):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _load(folder: Path) -> "Scorer | str":
    """The model, ready to answer, or why it cannot be."""
    try:
        from mlflow_deploy_plugin.pyfunc.scorer import Scorer  # what it imports may be missing, as in the image
    except ImportError as error:
        return (
            f"a model without an ONNX form needs mlflow and pandas, which are not installed here whole ({error}): "
            "pip install mlflow, or log the model with mlflow_deploy_plugin.log_model"
        )
    try:
        return Scorer.load(folder)
    except ImportError as error:
        needed = f"the Python package {error.name!r}" if error.name else one_line(error)
        _log.exception("the model cannot be loaded; what it needs is in %s", folder / "requirements.txt")
        return f"the model needs {needed}, which is not installed here; the log says where its requirements.txt lies"
    except Exception as error:  # noqa: BLE001 - loading runs the model's code
        _log.exception("the model cannot be loaded")
        return f"MLflow cannot load the model: {one_line(error)}"


def _answer(scorer: "Scorer", question: Message) -> Message:
    try:
        if question.kind == "invocations":
            return scorer.invoke(question.fields["content_type"], question.body)
        return scorer.predict(question.arrays["feeds"])
    except Refusal as refusal:
        return Message("refused", {"what": refusal.what, "message": refusal.message})
    except Exception as error:  # noqa: BLE001 - the boundary: the log has it, and the next question is answered
        _log.exception("answering failed")
        return Message("refused", {"what": "model", "message": f"the model cannot answer: {one_line(error)}"})


if __name__ == "__main__":
    main()
