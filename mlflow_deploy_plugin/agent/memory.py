"""What the agent has to find again when it is killed: for each wish the version that is wanted and the one before.

wanted.json alone does not tell to what to go back when the workers cannot load the version in it.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mlflow_deploy_plugin.agent.tracked import Tracked, Wish
from mlflow_deploy_plugin.agent.version import FetchedVersion
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.server.state import (
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

_log = logging.getLogger(__name__)


def remembered(state_dir: Path) -> dict[Wish, Tracked]:
    """What was served before this start; only versions whose files are still whole."""
    followed = read_state(state_dir / FOLLOWED, Followed) or Followed()
    found = {}
    for reference in followed.references:
        version, previous = _fetched(reference.version), _fetched(reference.previous)
        if version is None:
            version, previous = previous, None
        if version is not None:
            found[Wish(reference.model_uri, reference.require)] = Tracked(version, previous, told=reference.told)
    for wish, version in _wanted_versions(state_dir).items():
        found.setdefault(wish, Tracked(version))
    return found


def known_of(wish: Wish, served: WantedVariant | None, known: Mapping[Wish, Tracked]) -> Tracked:
    """What is known of a variant's wish; what it serves already is not taken away by what is required from now on."""
    if (tracked := known.get(wish)) is not None:
        return tracked
    for other, tracked in known.items():
        is_served = served is not None and tracked.version is not None and tracked.version.folder == served.folder
        if other.uri == wish.uri and is_served:
            return Tracked(tracked.version, tracked.previous)
    return Tracked()


def remember(state_dir: Path, tracked: Mapping[Wish, Tracked], before: Followed) -> Followed:
    """Writes it down where it has changed; what stands there now."""
    references = tuple(
        FollowedReference(
            model_uri=wish.uri,
            require=wish.require,
            version=_known(one.version),
            previous=_known(one.previous),
            told=one.told,
        )
        for wish, one in tracked.items()
        if one.version is not None
    )
    now = Followed(references=references)
    if now != before:
        write_state(state_dir / FOLLOWED, now)
    return now


def _wanted_versions(state_dir: Path) -> dict[Wish, FetchedVersion]:
    """By what the workers were told, whatever their endpoints required."""
    wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
    versions = {}
    for endpoint in wanted.endpoints.values():
        for variant in endpoint.variants.values():
            known = KnownVersion(
                model=variant.model, version=variant.version, folder=variant.folder, aspects=variant.aspects
            )
            if (version := _fetched(known)) is not None:
                versions[Wish(variant.model_uri)] = version
    return versions


def _known(version: FetchedVersion | None) -> KnownVersion | None:
    return None if version is None else KnownVersion.model_validate(asdict(version))


def _fetched(known: KnownVersion | None) -> FetchedVersion | None:
    if known is None:
        return None
    try:
        read_served_artifact(known.folder)
    except OnnxserveError as error:
        _log.warning("%s version %s is gone from this disk: %s", known.model, known.version, error)
        return None
    return FetchedVersion(**known.model_dump())
