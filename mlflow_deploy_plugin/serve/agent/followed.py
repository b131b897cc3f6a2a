"""The models that the agent follows, one `FollowedModel` per reference, and their
checkpoint followed.json. For each reference, the file has the served version, and the
previous version in case the served version cannot be loaded.
"""

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    ModelError,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import Resolution, ResolvedModel
from mlflow_deploy_plugin.core.spec.parts import GATE_PASSED, EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.statedir.files import FOLLOWED, assert_state, read_state
from mlflow_deploy_plugin.core.statedir.models import (
    FetchedVersion,
    Followed,
    FollowedReference,
    WantedVariant,
)
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact

_log = logging.getLogger(__name__)

NEVER = float("inf")
RejectionCause = Literal["gate", "signature", "fetch", "artifact", "consent", "load", "death"]
_CAUSE_TEXTS: dict[RejectionCause, str] = {
    "gate": "is not served",
    "signature": "is refused",
    "fetch": "cannot be fetched",
    "artifact": "cannot be served",
    "consent": "is not served",
    "load": "cannot be loaded",
    "death": "cannot be loaded",
}


class ModelRef(NamedTuple):
    """A model URI of the spec, and the endpoint's requirements for its versions: the
    gate, and the path of the key that must have signed them; empty if there are none.
    With `requires_name`, it must have signed each as this version of its registered
    model.
    """

    uri: str
    require: str = ""
    trusted_file: str = ""
    requires_name: bool = False

    @property
    def is_followed(self) -> bool:
        """True if the URI can select another version later. A poll reports the error of
        a malformed URI.
        """
        try:
            return parse_model_uri(self.uri).followed
        except InvalidConfig:
            return False

    def is_gated_by(self, places: Collection[str]) -> bool:
        """Return True if the URI is one of these stages and @aliases."""
        uri = parse_model_uri(self.uri)
        return uri.kind in ("stage", "alias") and uri.place.lower() in {
            place.lower() for place in places
        }


def model_ref(spec: EndpointSpec, variant: VariantSpec) -> ModelRef:
    gate = GATE_PASSED if spec.requires_gate else ""
    return ModelRef(variant.model, gate, spec.trusted_file, spec.requires_name)


@dataclass(frozen=True)
class Rejection:
    """The reason why a version that the registry names is not served. The version is
    retried at `retry_at`. If `retry_at` is `NEVER`, the version is retried only when
    the reference moves or a command loads the version.
    """

    identity: str
    source: str
    model: str
    version: str
    cause: RejectionCause
    reason: str
    retry_at: float = NEVER
    error_class: type[OnnxserveError] = ModelError


@dataclass
class FollowedModel:
    """The state of a model reference.

    Attributes:
        version: the version to serve; None until a version was fetched.
        previous: the version that was served before, which is restored if the workers
            cannot load `version`.
        is_verified: True if the files of `version` were checked after the agent's
            start.
        target: the version that the registry named last.
        unloadable: the identity of a version that the workers could not load.
        next_poll: the time of the next poll; `NEVER` during a poll.
        reported: the source of a version, and the error that was last written to the
            version's tag in the registry.
        report: the running write of `reporting` (source and error) to the tag; the next
            write starts at `report_at`.
    """

    version: FetchedVersion | None = None
    previous: FetchedVersion | None = None
    is_verified: bool = False
    target: ResolvedModel | None = None
    rejection: Rejection | None = None
    unloadable: str | None = None
    error: OnnxserveError | None = None
    poll_failures: int = 0
    fetch_failures: int = 0
    next_poll: float = 0.0
    poll: "Future[Resolution] | None" = None
    reported: tuple[str, str] = ("", "")
    report: "Future[bool] | None" = None
    report_at: float = 0.0
    reporting: tuple[str, str] = ("", "")

    @property
    def serves_target(self) -> bool:
        return (
            self.version is not None
            and self.target is not None
            and self.version.identity == self.target.identity
        )

    @property
    def is_settled(self) -> bool:
        """True if the registry's version is served, rejected or cannot be found, and no
        poll is running or due at once.
        """
        is_polled = self.target is not None or self.error is not None
        if self.poll is not None or self.next_poll <= 0 or not is_polled:
            return False
        return bool(self.error or self.rejection or (self.serves_target and self.is_verified))

    @property
    def may_load(self) -> bool:
        """True if the workers may load its version, or it may still have one."""
        if self.version is not None and self.version.identity != self.unloadable:
            return True
        return self.rejection is None and self.error is None

    def failure(self, uri: str) -> OnnxserveError | None:
        """Return the error that prevents the newest version from being fetched or
        loaded; None if there is none.
        """
        if self.rejection is not None:
            return self.rejection.error_class(self.message(uri))
        return self.error

    def message(self, uri: str) -> str:
        """Return the error of the reference for the status and the log; empty if there
        is none.
        """
        rejection = self.rejection
        error = self.error.message if self.error is not None else ""
        if rejection is None:
            return error
        if rejection.version:
            cause = f"version {rejection.version} {_CAUSE_TEXTS[rejection.cause]}: "
        else:
            cause = ""
        still_served = ""
        if self.version is not None and self.version.identity != rejection.identity:
            still_served = f"; version {self.version.version} is still served"
        refusal = f"{uri}: {cause}{rejection.reason}{still_served}"
        return f"{error}; {refusal}" if error else refusal

    def is_rejected_for(self, cause: RejectionCause) -> bool:
        return self.rejection is not None and self.rejection.cause == cause

    def serve(self, fetched: FetchedVersion) -> None:
        """Serve the fetched version, whose files are verified. Remember the version
        that it replaces.
        """
        if self.version is not None and self.version.folder != fetched.folder:
            self.previous = self.version
        self.version = fetched
        self.is_verified = True

    @property
    def is_lethal(self) -> bool:
        """True if workers died while they loaded the version to serve."""
        is_unloadable = self.version is not None and self.version.identity == self.unloadable
        return is_unloadable and self.is_rejected_for("death")

    def roll_back(self, error: str, cause: RejectionCause) -> None:
        """Reject the version to serve, which the workers could not load, and serve the
        previous version again if there is one.
        """
        failed = self.version
        assert failed is not None
        self.unloadable = failed.identity
        self.rejection = Rejection(
            failed.identity, failed.source, failed.model, failed.version, cause, error
        )
        if self.previous is not None:
            self.version = self.previous
            self.previous = None

    def retry_now(self) -> None:
        """Poll the registry immediately, and retry a rejected version."""
        self.next_poll = 0.0
        self.rejection = None
        self.unloadable = None
        self.fetch_failures = 0

    def pending_report(self) -> tuple[str, str] | None:
        """Return a version's source and the error for its tag (empty: remove the tag);
        None if the tag is current.
        """
        reported_source, reported_error = self.reported
        if self.rejection is not None:
            report = self.rejection.source, self.rejection.reason
        elif reported_error and self.version is not None and self.version.source == reported_source:
            report = reported_source, ""
        else:
            return None
        return report if report != self.reported else None


def checkpoint(state_dir: Path, models: Mapping[ModelRef, FollowedModel]) -> None:
    """Write the models that have a version to followed.json, if the file differs."""
    followed = Followed(
        references=tuple(
            FollowedReference(
                model_uri=ref.uri,
                version=model.version,
                previous=model.previous,
                told=model.reported,
                **ref._asdict(),
            )
            for ref, model in models.items()
            if model.version is not None
        ),
    )
    assert_state(state_dir / FOLLOWED, followed)


def restore_checkpoint(
    state_dir: Path, builds_environments: bool = False
) -> dict[ModelRef, FollowedModel]:
    """Return the models that were served before this start if their files, and their
    environments (`PyfuncPolicy`), are complete.
    """
    models = {}
    for reference in (read_state(state_dir / FOLLOWED, Followed) or Followed()).references:
        whole_versions = [
            version
            for version in (reference.version, reference.previous)
            if version and _is_whole(version, builds_environments)
        ]
        if whole_versions:
            previous = whole_versions[1] if len(whole_versions) > 1 else None
            ref = ModelRef(
                reference.model_uri,
                reference.require,
                reference.trusted_file,
                reference.requires_name,
            )
            models[ref] = FollowedModel(whole_versions[0], previous, reported=reference.told)
    return models


def carry_over(
    ref: ModelRef,
    served: WantedVariant | None,
    models_before: Mapping[ModelRef, FollowedModel],
) -> FollowedModel:
    """Return the state of a reference after a change of the spec.

    Args:
        served: the version that is wanted for the reference's variant; None if there is
            none. It is kept even if the endpoint's requirements have changed.
        models_before: the models before the change.
    """
    model = models_before.get(ref)
    if model is not None:
        return model
    for other, model in models_before.items():
        is_served = (
            served is not None
            and model.version is not None
            and model.version.folder == served.folder
        )
        if other.uri == ref.uri and is_served:
            return FollowedModel(model.version, model.previous)
    return FollowedModel()


def _is_whole(version: FetchedVersion, builds_environments: bool) -> bool:
    """Return True if the version's files on this disk can be served; otherwise log the
    reason.
    """
    try:
        is_pyfunc = read_served_artifact(version.folder).flavor == PYTHON_FUNCTION
        has_environment = is_pyfunc and (builds_environments or version.python)
        if has_environment and not Path(version.python).is_file():
            raise InvalidArtifact("its Python environment")
    except OnnxserveError as error:
        _log.warning(
            "%s version %s is missing on this disk: %s",
            version.model,
            version.version,
            error,
        )
        return False
    return True
