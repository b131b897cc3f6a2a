"""The moves of versions to stages and aliases, and the files with which they moved, as
events of MLflow's server in the audit trail.

A version may return to a place, and stay there, only with these files. Tags are not
read, because the people who may edit a model can replace its files.
"""

from collections.abc import Sequence

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
MOVES = ("transition", "alias", "tag", "promote", "rename", "delete", OUTSIDE)
"""The actions of the events that `served_files` and `arrived` read."""


def served_entry(version: str, place: str, files: str) -> Json:
    return {"version": version, "place": place, "files": files}


def served_files(events: Sequence[AuditEvent], version: str, place: object) -> str:
    """Return the digest of the files with which the version last moved to the stage or
    @alias, from the counted events `MOVES` of its model.

    Return an empty text if there is no such move, or if the files could not be read
    then.
    """
    for event in reversed(events):
        entries = [*event.detail.get(SERVED, ())]
        moved = event.detail.get("moved", {})
        if "files" in moved:
            entries.append(served_entry(event.version, moved["place"], moved["files"]))
        for entry in entries:
            if entry["version"] == version and name_key(entry["place"]) == name_key(str(place)):
                return str(entry["files"])
        if event.ends_model:
            break
    return ""


def arrived(events: Sequence[AuditEvent], version: str, place: object) -> bool | None:
    """Return True if the version has the stage or @alias since a counted move, from the
    counted events `MOVES` of its model.

    False if only an event `OUTSIDE` reports it there. None if it has left, if another
    version replaced it, or if there is no such event.
    """
    key = name_key(str(place))
    for event in reversed(events):
        # A renamed model has its versions under the new name only.
        served = event.detail.get(SERVED, ()) if event.model != event.before else ()
        entries = [entry for entry in served if not entry.get(REPLACED)]
        if moved := event.detail.get("moved"):
            entries.append(served_entry(event.version, moved["place"], ""))
        versions = {entry["version"] for entry in entries if name_key(entry["place"]) == key}
        if version in versions:
            return event.action != OUTSIDE
        if event.action == OUTSIDE:
            continue
        is_alone = key.startswith("@") or event.detail.get("archived")
        is_left = name_key(event.detail.get(LEFT, event.before)) == key
        has_left = is_left and event.version == version
        if event.ends_model or has_left or (versions and is_alone):
            break
    return None
