"""A process beside a worker, seen from within: says that it is ready, and answers questions until the worker has gone.

`server/models/side_process.py` starts it with the descriptor of its socket. The questions are answered one by one, in
the main thread. A second thread reads: when the worker has gone it ends this process and all that it has started, also
while it computes.
"""

import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable

from mlflow_deploy_plugin.pyfunc.refusal import RequestRefused, one_line
from mlflow_deploy_plugin.server.models.side_messages import MalformedMessage, SideMessage, receive, send
from mlflow_deploy_plugin.server.models.side_process import FAILED

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

Answer = Callable[[SideMessage], SideMessage]
"""The answer to one question; raises `Refusal`."""


class CannotStart(Exception):
    """There is nothing that could answer; the message says why."""


def answer_all(descriptor: int, name: str, start: Callable[[], tuple[SideMessage, Answer]]) -> None:
    """Answers until the worker has gone, which ends the process; returns where it cannot start.

    Args:
        name: what the lines of the log begin with.
        start: gives what is said when it is ready, and what answers; raises `CannotStart`.
    """
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # code that never lets go of the GIL dies by this
    questions: queue.Queue[SideMessage] = queue.Queue(1)
    threading.Thread(target=_read, args=(connection, questions), daemon=True).start()
    logging.basicConfig(format=f"%(asctime)s [{name} {os.getpid()}] %(levelname)s %(message)s", stream=sys.stderr)
    try:
        ready, answer = start()
    except CannotStart as error:
        send(connection, SideMessage(FAILED, {"message": str(error)}))
        return
    send(connection, ready)
    while True:
        answered = _answered(answer, questions.get())
        try:
            send(connection, answered)
        except ValueError as error:
            send(connection, SideMessage("refused", {"what": "model", "message": f"the answer is too large: {error}"}))


def _read(connection: socket.socket, questions: "queue.Queue[SideMessage]") -> None:
    """Until the worker has gone."""
    try:
        while (message := receive(connection)) is not None:
            questions.put(message)
    except (OSError, MalformedMessage):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _answered(answer: Answer, question: SideMessage) -> SideMessage:
    try:
        return answer(question)
    except RequestRefused as refusal:
        return SideMessage("refused", {"what": refusal.what, "message": refusal.message})
    except Exception as error:  # noqa: BLE001 - the boundary: the log has it, and the next question is answered
        _log.exception("answering failed")
        return SideMessage("refused", {"what": "model", "message": f"the model cannot answer: {one_line(error)}"})
