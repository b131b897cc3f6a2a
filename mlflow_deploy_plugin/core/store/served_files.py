"""The files with which versions moved to stages and aliases, as events of MLflow's
server in the audit trail.

A version may return to a place, and stay there, only with these files. Tags are not
read, because the people who may edit a model can replace its files.
"""

from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import Json

SERVED = "served"
"""The key of the list of `served_entry` in the detail of an event that sets a policy or
renames a model.
"""
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
            if entry["version"] == version and entry["place"].lower() == place.lower():
                return str(entry["files"])
        if event.action in ("rename", "delete") and not event.endpoint:
            break  # Earlier versions belong to a different model.
    return ""
