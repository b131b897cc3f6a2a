"""The moves of versions to stages and aliases, and the files with which they moved, as
events of MLflow's server in the audit trail.

A version may return to a place, and stay there, only with these files. Tags are not
read, because the people who may edit a model can replace its files.
"""

from mlflow_deploy_plugin.core.store.people import name_key
from mlflow_deploy_plugin.core.store.store import Store
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
UNCOUNTED = ("", OUTSIDE)
"""The results of `arrival` for a version without a counted move."""
_ACTIONS = ("transition", "alias", "tag", "rename", "delete")


def served_entry(version: str, place: str, files: str) -> Json:
    return {"version": version, "place": place, "files": files}


def served_files(store: Store, model: str, version: str, place: str) -> str:
    """Return the digest of the files with which the version last moved to the stage or
    @alias.

    Return an empty text if there is no such move, or if the files could not be read
    then. Raises StoreUnavailable.
    """
    for event in reversed(store.counted_events(model, _ACTIONS)):
        entries = [*event.detail.get(SERVED, ())]
        moved = event.detail.get("moved", {})
        if "files" in moved:
            entries.append(served_entry(event.version, moved["place"], moved["files"]))
        for entry in entries:
            if entry["version"] == version and name_key(entry["place"]) == name_key(place):
                return str(entry["files"])
        if event.action in ("rename", "delete") and not event.endpoint:
            break  # Earlier versions belong to a different model.
    return ""


def arrival(store: Store, model: str, version: str, place: str) -> str:
    """Return the action of the event since which the version has the stage or @alias:
    of its counted move, or `OUTSIDE`.

    Empty if the version has left, if another version replaced it, or if there is no
    such event. Raises StoreUnavailable.
    """
    key = name_key(place)
    for event in reversed(store.counted_events(model, (OUTSIDE, *_ACTIONS))):
        entries = [entry for entry in event.detail.get(SERVED, ()) if not entry.get(REPLACED)]
        if moved := event.detail.get("moved"):
            entries.append(served_entry(event.version, moved["place"], ""))
        arrived = {entry["version"] for entry in entries if name_key(entry["place"]) == key}
        if version in arrived:
            return event.action
        if event.action == OUTSIDE:
            continue
        has_left = name_key(event.detail.get(LEFT, event.before)) == key
        is_alone = place.startswith("@") or event.detail.get("archived")
        is_of_other_model = event.action in ("rename", "delete") and not event.endpoint
        if is_of_other_model or (arrived and is_alone) or (has_left and event.version == version):
            break
    return ""
