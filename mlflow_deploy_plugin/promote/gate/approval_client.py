"""Requests for promotions over HTTP: the form of a request, and a client of MLflow's server, which keeps the requests.

Only the server records requests and approvals, because it authenticates the person who sends them.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, error_of_status
from mlflow_deploy_plugin.core.registry.connection import app_answer, registry_errors

PATH, _JSON = "/onnxserve/requests", "application/json"
_SECONDS = 120
"""The timeout of a request. The server may have to read all files of a version."""


class ListedRequest(BaseModel):
    """A requested promotion to the stage or @alias `to`, with its gate report and its approvals.

    Attributes:
        verdict / report / report_digest: the state, the URL and the SHA-256 of the gate report; empty without a report.
        missing: the number of missing approvals. `reason` describes them in one line, and is empty if none is missing.
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
    approved_by: tuple[str, ...] = ()
    missing: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"the promotion of {self.model} version {self.version} to {self.to}"


def listed_requests(model: str = "") -> list[ListedRequest]:
    """Return the open requests that this user may read, or only the requests for a model."""
    return [ListedRequest.model_validate(entry) for entry in _call("GET", {"model": model})]


def send_decision(
    action: Literal["request", "approve", "decline"], model: str, version: str, to: str, why: str = "", report: str = ""
) -> ListedRequest:
    """Request, approve or decline a promotion. `report` is the SHA-256 that the user saw. Raises the server's error."""
    document = {"action": action, "model": model, "version": version, "to": to, "why": why, "report": report}
    return ListedRequest.model_validate(_call("POST", {}, document))


def _call(method: str, query: dict[str, str], document: dict[str, str] | None = None) -> Any:
    from mlflow.utils.rest_utils import verify_rest_response  # The import takes a second.

    with registry_errors("the requests for promotions"):
        try:
            answer = app_answer(PATH, _JSON, method, query, json=document, timeout=_SECONDS)
        except NotFound as missing:
            remedy = "start it with `--app-name onnxserve` and a login, and set MLFLOW_TRACKING_URI to its address"
            raise InvalidConfig(f"{missing.message}, which keeps requests for promotions: {remedy}") from None
        is_json = answer.headers.get("Content-Type", "").startswith(_JSON)
        error = answer.json() if is_json and not answer.ok else {}
        if "error_code" not in error:
            return verify_rest_response(answer, PATH).json()
    raise error_of_status(answer.status_code)(error["message"])
