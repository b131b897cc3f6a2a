"""A side process, seen from within: it reports that it is ready, and answers requests until the worker has gone.

`server/models/side_process.py` starts it with the descriptor of its socket. The main thread answers the requests one by
one. A second thread reads them, and ends this process and all that it has started when the worker has gone.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable

from mlflow_deploy_plugin.processes import die_with_parent, requests_of_parent
from mlflow_deploy_plugin.pyfunc.refusal import RequestRefused, one_line
from mlflow_deploy_plugin.server import FAILED, SideMessage, receive, send

_log = logging.getLogger(__name__)

Answer = Callable[[SideMessage], SideMessage]
"""Returns the answer to one request, or raises `RequestRefused`."""


class CannotStart(Exception):
    """Nothing could be made ready to answer; the message says why."""


def answer_all(descriptor: int, name: str, start: Callable[[], tuple[SideMessage, Answer]]) -> None:
    """Answer until the worker has gone, which ends the process. Return if nothing can be made ready.

    Args:
        name: the prefix of the lines of the log.
        start: returns the message that reports readiness, and the function that answers; raises `CannotStart`.
    """
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    die_with_parent()  # code that never lets go of the GIL dies by this
    requests = requests_of_parent(lambda: receive(connection))
    logging.basicConfig(format=f"%(asctime)s [{name} {os.getpid()}] %(levelname)s %(message)s", stream=sys.stderr)
    try:
        ready, answer = start()
    except CannotStart as error:
        send(connection, SideMessage(FAILED, {"message": str(error)}))
        return
    send(connection, ready)
    for request in requests:
        try:
            answered = answer(request)
        except RequestRefused as refusal:
            answered = _refusal(refusal.what, refusal.message)
        except Exception as error:  # noqa: BLE001 - the boundary: the log has it, and the next request is answered
            _log.exception("answering failed")
            answered = _refusal("model", f"the model cannot answer: {one_line(error)}")
        try:
            send(connection, answered)
        except ValueError as error:
            send(connection, _refusal("model", f"the answer is too large: {error}"))


def _refusal(what: str, message: str) -> SideMessage:
    return SideMessage("refused", {"what": what, "message": message})
