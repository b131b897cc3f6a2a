"""Whether a version goes back to where it stood: a rollback must not wait for a gate that came after it."""

from mlflow_deploy_plugin.store import AuditEvent, Store


def is_rollback_target(store: Store, model: str, version: str, place: str, holder: str) -> bool:
    """Whether `version` is what `holder` took the place of, by the audit trail; False where it does not say.

    Args:
        place: a stage, or @alias.
        holder: the version that is there now.

    Raises:
        StoreUnavailable: the trail cannot be read.
    """
    for event in reversed(store.events(model=model)):
        if not event.endpoint and event.action in ("rename", "delete"):
            return False  # another model had this name: its numbers are not those of this one
        if event.version == holder and (before := _before(event, place)) is not None:
            return before == version
    return False


def _before(event: AuditEvent, place: str) -> str | None:
    """The version whose place was taken by this event; None where it is about another place, or another thing."""
    if event.action == "transition" and event.after == place:
        return str(event.detail.get("stood_there", ""))
    if event.action in ("promote", "alias") and event.after.lower().endswith(f" in {place}".lower()):
        return event.before.removeprefix("version ").partition(" ")[0]
    return None
