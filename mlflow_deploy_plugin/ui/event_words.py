"""Events of the audit trail in words, such as `promoted version 7 of flight-delay to
@champion`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from mlflow_deploy_plugin.core.store.audit import AuditEvent

_MODEL = "<bdi>{model}</bdi>"
_VERSION = f"version {{version}} of {_MODEL}"
_WORDS = {
    "create": "created the endpoint {endpoint}",
    "update": "changed the settings of {endpoint}",
    "delete": "deleted the endpoint {endpoint}",
    "start": "started the server of {endpoint}",
    "stop": "stopped the server of {endpoint}",
    "traffic": "changed the traffic of {endpoint}",
    "follow": "let {endpoint} follow an alias instead of a stage",
    "load": "loaded {endpoint} by model control",
    "unload": "unloaded {endpoint} by model control",
    "transition": f"moved {_VERSION} to another stage",
    "alias": f"moved an alias of {_VERSION}",
    "tag": f"changed the tag {{tag}} of {_VERSION}",
    "register": f"registered {_VERSION}",
    "outside": f"found {_VERSION} in a place to which this server did not move it",
    "rename": "renamed the model <bdi>{model}</bdi>",
    "refused": f"was refused a change of {_VERSION}",
    "promote": f"promoted {_VERSION}",
    "gate": f"ran the gate for {_VERSION}: {{after}}",
    "request": f"requested the promotion of {_VERSION} to {{after}}",
    "approve": f"approved the promotion of {_VERSION} to {{after}}",
    "decline": f"declined the promotion of {_VERSION} to {{after}}",
    "copy": f"copied {_VERSION}",
    "rollout.start": f"started a rollout of {_VERSION} on {{endpoint}}",
    "rollout.step": (
        f"moved the rollout of {_VERSION} on {{endpoint}} to another share of the traffic"
    ),
    "rollout.end": f"ended the rollout of {_VERSION} on {{endpoint}}",
    "rollback": f"rolled {{endpoint}} back to {_VERSION}",
    "retrain.start": "started a retraining of <bdi>{model}</bdi>",
    "retrain.refused": "started no retraining of {endpoint}",
    "retrain.run": "started the training run of <bdi>{model}</bdi>",
    "retrain.version": f"registered {_VERSION} from a retraining",
    "retrain.end": "ended the retraining of <bdi>{model}</bdi>",
    "monitor.pause": "paused the monitor {monitor} of {endpoint}",
    "monitor.resume": "resumed the monitor {monitor} of {endpoint}",
    "monitor.accept": "accepted an alarm of the monitor {monitor} of {endpoint}",
    "silence": "silenced the alerts of {endpoint}",
    "silence.end": "ended the silence of {endpoint}",
    "seal": "began to sign the audit trail with the key {after}",
    "gap": "stored events again that were kept while the store was away",
    "intend": f"was about to change {_VERSION}",
    "failed": f"did not change {_VERSION}",
    "adopt": "accepted the audit trail, which had lost events or had unknown signatures",
    "hold": "put the data of {endpoint} on hold",
    "release": "released the data of {endpoint}",
    "erase": "erased the rows of a person from the log of {endpoint}",
    "key.create": "created an API key",
    "key.revoke": "revoked an API key",
}
ACTIONS = tuple(sorted(_WORDS))
_OF_AN_OUTCOME = {
    ("load", "failed"): "failed to load {endpoint} by model control",
    ("unload", "failed"): "failed to unload {endpoint} by model control",
    ("transition", "deleted"): f"deleted {_VERSION}",
}
"""The words for an action with this value after it."""
_WITHOUT_CHANGE = (
    *("load", "unload", "register", "gate", "request", "approve", "decline", "seal"),
)
"""The actions whose words contain the values of the event."""


@dataclass(frozen=True)
class EventRow:
    """An event, a phrase about its actor, and the values before and after that the
    phrase lacks, or an empty text.
    """

    event: AuditEvent
    words: Markup
    change: str


def event_rows(events: Iterable[AuditEvent]) -> tuple[EventRow, ...]:
    """Return the events with phrases, whose values are escaped."""
    rows = []
    for event in events:
        action = event.action
        words = _WORDS.get(action, "{action}: {endpoint} <bdi>{model}</bdi> {version}")
        words = _OF_AN_OUTCOME.get((action, event.after), words)
        if event.model and not event.version and not event.endpoint:
            # The event is about a whole model.
            words = words.replace(_VERSION, _MODEL)
            words = words.replace("endpoint {endpoint}", f"model {_MODEL}")
        # The endpoint may follow nothing, and has a model URI then.
        if action == "rollback" and not event.version.isdigit():
            words = "rolled {endpoint} back to {version}"
        phrase = Markup(words).format(
            action=action,
            endpoint=event.endpoint,
            model=event.model,
            version=event.version,
            after=event.after,
            monitor=event.detail.get("monitor", ""),
            tag=event.detail.get("tag", ""),
        )
        change = event.after
        if action == "refused" and not event.after:  # Nothing has changed.
            change = str(event.detail.get("to", ""))
        elif action in _WITHOUT_CHANGE:
            change = ""
        elif event.before:
            change = f"{event.before} → {event.after or 'nothing'}"
        rows.append(EventRow(event, phrase, change))
    return tuple(rows)
