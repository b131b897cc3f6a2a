"""The files of a version that people have approved, which MLflow's server with
onnxserve knows from its audit trail.

- `GET /onnxserve/approved?model=X&version=7`: the `Approval` of the version
- `GET /onnxserve/changed-files`: each `ChangedFiles` of the models that the caller may
  read

Tags are not asked, because other people may write to MLflow's database and artifacts.
"""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from mlflow_deploy_plugin.core.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import (
    app_document,
    registry_client,
    registry_errors,
)

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.registry.policy import GatePolicy

APPROVED = "/onnxserve/approved"
CHANGED_FILES = "/onnxserve/changed-files"
_WHAT = "the approvals of versions"
_SECONDS = 30
_READING_SECONDS = 600
"""The timeouts of both requests. For the second request, the server reads files."""


class Approval(BaseModel):
    """The approval of a version.

    Attributes:
        is_required: True if the policy of the model requires approvals.
        files: the digests of all files (`core.mlmodel.combine_hashes`) that people have
            approved or, without required approvals, that passed the gate, or with which
            the version moved to a gated place; digests of open requests come first.
            Empty if there are no such files.
        earlier: the digests of files that once had all approvals. A version whose
            request has ended keeps its traffic at an endpoint, but only with these
            files.
        places: the stages and @aliases that the policy gates.
        judged: the digest of the files of the last verdict in the audit trail, if it
            passed or was forced, otherwise empty. None if no audit trail was asked.
    """

    model_config = ConfigDict(frozen=True)

    is_required: bool = False
    files: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    judged: str | None = None


class ChangedFiles(BaseModel):
    """A version in a gated stage or @alias whose files are not the recorded files. An
    empty `now` is unreadable.

    If `is_outside` is True, the version did not move there through MLflow's server with
    onnxserve, and the files were not compared.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    place: str
    recorded: str = ""
    now: str = ""
    is_outside: bool = False


def approval_of(model: str, version: str) -> Approval:
    """Return the approval of a version. Without the app, a model that requires
    approvals has no approved versions.

    Raises NotFound, RegistryRefused, RegistryUnavailable, and InvalidConfig for an
    invalid policy.
    """
    query = {"model": model, "version": version}
    document = _read(APPROVED, query, _SECONDS)
    if document is not None:
        return Approval.model_validate(document)
    with registry_errors(f"model {model}"):
        model_tags = registry_client().get_registered_model(model).tags
    policy = policy_with_approvals(model, model_tags)
    if policy is None:
        return Approval()
    return Approval(is_required=True, places=tuple(map(str, policy.gated_places)))


def policy_with_approvals(model: str, model_tags: dict[str, str]) -> "GatePolicy | None":
    """Return the policy in the tags of a registered model if it requires approvals,
    otherwise None. Raises InvalidConfig for an invalid policy.
    """
    if not tags.requires_approvals(model_tags.get(tags.GATE_POLICY_TAG, "")):
        return None
    # Only models with approvals need a policy.
    from mlflow_deploy_plugin.core.registry.policy import policy_from_tags

    return policy_from_tags(model, model_tags)


def changed_files() -> list[ChangedFiles]:
    """Return the changed files that MLflow's server finds now; an empty list without
    the app.
    """
    document = _read(CHANGED_FILES, {}, _READING_SECONDS)
    return TypeAdapter(list[ChangedFiles]).validate_python(document or [])


def _read(
    path: str,
    query: dict[str, str],
    seconds: float,
) -> Any:
    """Return the answer of MLflow's server, or None without the app. Any failure of the
    app is RegistryUnavailable.
    """
    try:
        return app_document(_WHAT, path, "GET", query, seconds, is_optional=True)
    except OnnxserveError as error:
        if error.http_status < 500 or isinstance(error, RegistryUnavailable):
            raise
        raise RegistryUnavailable(error.message) from None
