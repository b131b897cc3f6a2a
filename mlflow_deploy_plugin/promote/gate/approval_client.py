"""Requests for promotions over HTTP: the form of a request, and a client of MLflow's
server, which keeps the requests.

Only the server records requests and approvals, because it authenticates the person who
sends them.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.connection import app_document, registry_address

PATH = "/onnxserve/requests"
_SECONDS = 600
"""The timeout of a request. The server may have to read all files of a version."""


class ListedRequest(BaseModel):
    """A requested promotion to the stage or @alias `to`, with its gate report and its
    approvals.

    Attributes:
        verdict: the state of the gate report; empty without a report.
        report: the URL of the report; empty without a report.
        report_digest: the SHA-256 of the report; empty without a report.
        judged_by: the person who ran the gate, the machine and its address; empty
            without a report.
        missing: the number of missing approvals.
        reason: a line about the missing approvals; empty if none is missing.
        is_moving: True while the move waits for witnesses. A decline prevents it.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    to: str
    requested_by: str
    at: datetime
    why: str = ""
    verdict: str = ""
    report: str = ""
    report_digest: str = ""
    judged_by: str = ""
    approved_by: tuple[str, ...] = ()
    missing: int = 0
    reason: str = ""
    is_moving: bool = False

    def __str__(self) -> str:
        return f"the promotion of {self.model} version {self.version} to {self.to}"


def listed_requests(model: str = "") -> list[ListedRequest]:
    """Return the open requests that this user may read, or only the requests for a
    model.
    """
    return [ListedRequest.model_validate(entry) for entry in _call("GET", {"model": model})]


def send_decision(
    action: Literal["request", "approve", "decline"],
    model: str,
    version: str,
    to: str,
    why: str = "",
    report: str = "",
) -> ListedRequest:
    """Request, approve or decline a promotion. `report` is the SHA-256 of the gate
    report that the user saw. Raises the server's error.
    """
    document = {
        "action": action,
        "model": model,
        "version": version,
        "to": to,
        "why": why,
        "report": report,
    }
    return ListedRequest.model_validate(_call("POST", {}, document))


def _call(
    method: str,
    query: dict[str, str],
    document: dict[str, str] | None = None,
) -> Any:
    """Return the JSON answer of MLflow's server. Raises InvalidConfig if it does not
    run the app.
    """
    answer = app_document("the requests for promotions", PATH, method, query, _SECONDS, document)
    if answer is None:
        raise InvalidConfig(
            f"MLflow at {registry_address()} does not run the app of onnxserve, which keeps "
            "requests for promotions: start it with `--app-name onnxserve` and a login, and set "
            "MLFLOW_TRACKING_URI to its address"
        )
    return answer
