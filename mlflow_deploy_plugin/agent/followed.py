"""What the agent knows of one model URI: the version served for it, and what keeps another from being served."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from mlflow_deploy_plugin.agent.fetch import FetchedVersion
from mlflow_deploy_plugin.errors import ModelError, OnnxserveError
from mlflow_deploy_plugin.registry.resolve import Resolution, ResolvedModel
from mlflow_deploy_plugin.runtime import read_served_artifact
from mlflow_deploy_plugin.spec import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.statedir import (
    FOLLOWED,
    WANTED,
    Followed,
    FollowedReference,
    KnownVersion,
    Wanted,
    WantedVariant,
    read_state,
    write_state,
)

RejectionCause = Literal["gate", "fetch", "artifact", "consent", "load"]
NEVER = float("inf")
_CAUSE_TEXTS: dict[RejectionCause, str] = {
    "gate": "is not served",
    "fetch": "cannot be fetched",
    "artifact": "cannot be served",
    "consent": "is not served",
    "load": "cannot be loaded",
}


class ModelRef(NamedTuple):
    """What variants name, and what their endpoint requires of a version; empty: nothing."""

    uri: str
    require: str = ""


def model_ref(spec: EndpointSpec, variant: VariantSpec) -> ModelRef:
    return ModelRef(variant.model, spec.require or "")


@dataclass(frozen=True)
class Rejection:
    """Why a version that the registry names is not served.

    Attributes:
        retry_at: when it is tried again; `NEVER`: not before the reference moves, or somebody asks for it.
        kind: the class of the error, for whoever commanded it.
    """

    identity: str
    source: str
    model: str
    version: str
    cause: RejectionCause
    reason: str
    retry_at: float = NEVER
    kind: type[OnnxserveError] = ModelError


@dataclass
class FollowedModel:
    """One wish.

    Attributes:
        version: what is to be served for it; None until something could be fetched.
        previous: what was served before, to go back to when the workers cannot load `version`.
        is_checked: the files of `version` have been looked at since the agent's start.
        target: what the registry has said last.
        trouble: why the target is not served.
        unloadable: identity of a version that the workers have said they cannot load.
        error: why the last look at the registry failed, and `failed` how; `failures`: how often in a row.
        due: when to look at the registry next; never while a look is under way.
        told: a version and the error that its tag in the registry says; `saying`: what is being written there.
    """

    version: FetchedVersion | None = None
    previous: FetchedVersion | None = None
    is_checked: bool = False
    target: ResolvedModel | None = None
    trouble: Rejection | None = None
    unloadable: str | None = None
    error: str = ""
    failed: type[OnnxserveError] = OnnxserveError
    failures: int = 0
    fetch_failures: int = 0
    due: float = 0.0
    look: "Future[dict[str, Resolution]] | None" = None
    told: tuple[str, str] = ("", "")
    telling: "Future[bool] | None" = None
    tell_at: float = 0.0
    saying: tuple[str, str] = ("", "")

    @property
    def serves_target(self) -> bool:
        return self.version is not None and self.target is not None and self.version.identity == self.target.identity

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be done for what the registry has said last."""
        if self.look is not None or self.due <= 0 or (self.target is None and not self.error):
            return False
        return bool(self.error or self.trouble or (self.serves_target and self.is_checked))

    def failure(self, uri: str) -> OnnxserveError | None:
        """Why the newest version is not to be had, or not to be loaded; None: nothing is known against it."""
        if self.trouble is not None:
            return self.trouble.kind(self.words(uri))
        return self.failed(self.error) if self.error else None

    def words(self, uri: str) -> str:
        """What is wrong, for the status and the log; empty: nothing is."""
        trouble = self.trouble
        if trouble is None:
            return self.error
        named = f"version {trouble.version} {_CAUSE_TEXTS[trouble.cause]}: " if trouble.version else ""
        served = self.version
        goes_on = served is not None and served.identity != trouble.identity
        kept = f"; version {served.version} is served on" if goes_on and served is not None else ""
        return "; ".join(filter(None, [self.error, f"{uri}: {named}{trouble.reason}{kept}"]))

    def refuse(self, error: str) -> None:
        """The workers could not load `version`, the wanted one: back to what was served before it."""
        failed = self.version
        assert failed is not None
        self.unloadable = failed.identity
        self.trouble = Rejection(failed.identity, failed.source, failed.model, failed.version, "load", error)
        if self.previous is not None:
            self.version, self.previous = self.previous, None

    def look_anew(self) -> None:
        """The registry is asked at once, and what was refused is tried again."""
        self.due, self.trouble, self.unloadable, self.fetch_failures = 0.0, None, None, 0

    def to_tell(self) -> tuple[str, str] | None:
        """The version and the error that its tag is to say from now on (empty: none); None: all is said."""
        if self.trouble is not None:
            wanted = self.trouble.source, self.trouble.reason
        elif self.told[1] and self.version is not None and self.version.source == self.told[0]:
            wanted = self.told[0], ""
        else:
            return None
        return wanted if wanted != self.told else None


def wanted_variant(variant: VariantSpec, version: FetchedVersion) -> WantedVariant:
    return WantedVariant(
        model_uri=variant.model,
        model=version.model,
        version=version.version,
        folder=version.folder,
        weight=variant.weight,
        shadow=variant.shadow,
        aspects=version.aspects,
    )


_log = logging.getLogger(__name__)


def restore_checkpoint(state_dir: Path) -> dict[ModelRef, FollowedModel]:
    """What was served before this start; only versions whose files are still whole."""
    followed = read_state(state_dir / FOLLOWED, Followed) or Followed()
    found = {}
    for reference in followed.references:
        version, previous = _if_whole(reference.version), _if_whole(reference.previous)
        if version is None:
            version, previous = previous, None
        if version is not None:
            found[ModelRef(reference.model_uri, reference.require)] = FollowedModel(
                version, previous, told=reference.told
            )
    for wish, version in _wanted_versions(state_dir).items():
        found.setdefault(wish, FollowedModel(version))
    return found


def carry_over(wish: ModelRef, served: WantedVariant | None, known: Mapping[ModelRef, FollowedModel]) -> FollowedModel:
    """What is known of a variant's wish; what it serves already is not taken away by what is required from now on."""
    if (tracked := known.get(wish)) is not None:
        return tracked
    for other, tracked in known.items():
        is_served = served is not None and tracked.version is not None and tracked.version.folder == served.folder
        if other.uri == wish.uri and is_served:
            return FollowedModel(tracked.version, tracked.previous)
    return FollowedModel()


def checkpoint(state_dir: Path, tracked: Mapping[ModelRef, FollowedModel], before: Followed) -> Followed:
    """Writes it down where it has changed; what stands there now."""
    references = tuple(
        FollowedReference(
            model_uri=wish.uri,
            require=wish.require,
            version=_known_version(one.version),
            previous=_known_version(one.previous),
            told=one.told,
        )
        for wish, one in tracked.items()
        if one.version is not None
    )
    now = Followed(references=references)
    if now != before:
        write_state(state_dir / FOLLOWED, now)
    return now


def _wanted_versions(state_dir: Path) -> dict[ModelRef, FetchedVersion]:
    """By what the workers were told, whatever their endpoints required."""
    wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
    versions = {}
    for endpoint in wanted.endpoints.values():
        for variant in endpoint.variants.values():
            known = KnownVersion(
                model=variant.model, version=variant.version, folder=variant.folder, aspects=variant.aspects
            )
            if (version := _if_whole(known)) is not None:
                versions[ModelRef(variant.model_uri)] = version
    return versions


def _known_version(version: FetchedVersion | None) -> KnownVersion | None:
    return None if version is None else KnownVersion.model_validate(asdict(version))


def _if_whole(known: KnownVersion | None) -> FetchedVersion | None:
    if known is None:
        return None
    try:
        read_served_artifact(known.folder)
    except OnnxserveError as error:
        _log.warning("%s version %s is gone from this disk: %s", known.model, known.version, error)
        return None
    return FetchedVersion(**known.model_dump())
