"""The moves of versions to stages and aliases, and the files with which they moved, as
events of MLflow's server in the audit trail.

A version may return to a place, and stay there, only with these files. Tags are not
read, because the people who may edit a model can replace its files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.people import name_key
from mlflow_deploy_plugin.core.store.tables import Json

SERVED = "served"
"""The key of the list of `served_entry` in the detail of an event that sets a policy or
renames a model.
"""
REPLACED = "replaced"
"""The key that is True in the `served_entry` of a version that the holder of the place
had replaced.
"""
LEFT = "left"
"""The key of the @alias in the detail of the event that deletes it."""
OUTSIDE = "outside"
"""The action of the event that a version has a gated stage or alias without a move by
MLflow's server.
"""
ROLLBACK = "rollback"
"""The key that is True in the detail of a move that is the return of a version."""
MOVES = ("gate", "transition", "alias", "tag", "promote", "rename", "delete", OUTSIDE)
"""The actions of the events that decide which version may be in a place."""


@dataclass
class Stay:
    """A version at a stage or @alias, by the counted events `MOVES` of its model.

    Attributes:
        files: the digest of the files with which the version last moved there; empty if
            there is no such move, or if the files could not be read then.
        is_counted: True if the version is there since a counted move, and False if only
            an event `OUTSIDE` reports it there. None if it has left, if another version
            replaced it, or if there is no such event.
        replaced: the version that it replaced with its last move, and that may return.
        is_rollback: True if its last move was its own return, which replaces none.
    """

    files: str = ""
    is_counted: bool | None = None
    replaced: str = ""
    is_rollback: bool = False


def served_entry(version: str, place: object, files: str) -> Json:
    return {"version": version, "place": str(place), "files": files}


def stay_of(events: Iterable[AuditEvent], version: str, place: object) -> Stay:
    """Return the stay of the version after these events, oldest first."""
    key = name_key(str(place))
    stay = Stay()
    last_moved = ""
    for event in events:
        if event.ends_model:
            stay = Stay()
        moved = event.detail.get("moved")
        # A renamed model has its versions under the new name only.
        entries = [*event.detail.get(SERVED, ())] if event.model != event.before else []
        if moved:
            entries.append({"version": event.version, **moved})
        here = {entry["version"]: entry for entry in entries if name_key(entry["place"]) == key}
        stay.files = here.get(version, {}).get("files", stay.files)
        holders = [number for number, entry in here.items() if not entry.get(REPLACED)]
        if event.action == OUTSIDE:
            if version in holders:
                stay.is_counted = False
            continue
        left = name_key(event.detail.get(LEFT, event.before)), event.version
        is_alone = key.startswith("@") or event.detail.get("archived")
        if version in holders:
            stay.is_counted = True
        elif left == (key, version) or (holders and is_alone):
            stay.is_counted = None
        # A move of the version that was already there replaces none.
        if moved and holders and event.version != moved["before"]:
            if event.version == version:
                # A move may have several events, by MLflow and by a command.
                stay.is_rollback &= last_moved == version
                stay.is_rollback |= ROLLBACK in event.detail
                stay.replaced = "" if stay.is_rollback else moved["before"]
            last_moved = event.version
    return stay
