"""Checkpoints of the audit trail: the last event of each chain, signed by MLflow's
server and stored outside of the store. With a checkpoint, it is found that the last
events of a chain were removed.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store.audit_chain import SEAL, canonical_json, chain_heads
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_record import Head, chain_id
from mlflow_deploy_plugin.core.store.store import Store

_PURPOSE = "audit checkpoint"
_LATE = timedelta(hours=3)
"""The age of the newest checkpoint that is two hours late, because one is made per
hour.
"""


class Checkpoint(BaseModel):
    """The state of the trail at a time.

    Attributes:
        heads: the `chain_id` of each model → the id and the hash of its last event.
        signed_by: the id of the key.
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    heads: dict[str, tuple[int, str]]
    signed_by: str = ""
    signature: str = ""

    @property
    def content(self) -> str:
        """The signed text."""
        return canonical_json(self.model_dump(mode="json", exclude={"signature"}))

    def heads_of(self, models: Iterable[str]) -> Iterator[Head]:
        """Yield the ends of all chains, with the names of those of the `models`. Other
        chains keep their ids.
        """
        names = {chain_id(model): model for model in models}
        for chain, (event, digest) in self.heads.items():
            yield Head(model=names.get(chain, chain), event=event, digest=digest)


def make_checkpoint(store: Store, keys: Keys) -> Checkpoint:
    """Return a signed checkpoint of now."""
    with store.reading() as session:
        newest = {head.model: head for head in chain_heads(session)}
    recorded = store.trail_record.heads() if store.trail_record else ()
    for head in recorded:
        # The chain may have lost its end.
        if head.model not in newest or newest[head.model].event < head.event:
            newest[head.model] = head
    heads = {chain_id(model): (head.event, head.digest) for model, head in newest.items()}
    checkpoint = Checkpoint(at=store.now(), heads=heads, signed_by=keys.key_id)
    signature = keys.sign(_PURPOSE, checkpoint.content)
    return checkpoint.model_copy(update={"signature": signature})


def load_checkpoint(text: str, keys: Keys, origin: str) -> Checkpoint:
    """Return the checkpoint of a JSON text. `origin` names it in messages.

    Raises InvalidConfig if it is not a checkpoint that is signed by one of the keys.
    """
    try:
        checkpoint = Checkpoint.model_validate_json(text)
    except ValidationError:
        raise InvalidConfig(f"{origin} is not a checkpoint of the audit trail") from None
    signature = checkpoint.signature
    if not keys.is_signed(_PURPOSE, checkpoint.content, checkpoint.signed_by, signature):
        raise InvalidConfig(
            f"the checkpoint {origin} has no valid signature of a key that is trusted here: it "
            "was changed, or its key is missing"
        )
    return checkpoint


def lateness(checkpoint: Checkpoint | None, store: Store) -> str:
    """Return a line about a newest checkpoint of the store that is missing, or two
    hours late; empty for one in time, and for a trail that was sealed shortly before.
    """
    now = store.now()
    if checkpoint is None:
        sealed = next(store.events(actions=(SEAL,)), None)
        if sealed is not None and now - sealed.at < _LATE:
            return ""
        return "the newest checkpoint of the trail is missing"
    # A checkpoint from the future was made by a wrong clock.
    if abs(now - checkpoint.at) > _LATE:
        return (
            f"the newest checkpoint of the audit trail is late: of {checkpoint.at:%Y-%m-%d %H:%M}Z"
        )
    return ""


def changed_ends(
    checkpoint: Checkpoint,
    later: Checkpoint,
    digests: Mapping[tuple[str, int], str],
) -> Iterator[int]:
    """Yield the ids of the events in `checkpoint` that have another hash in `later` or
    `digests`, or that `later` lacks. A `later` checkpoint of before may lack events.

    Args:
        digests: the chain and the id of further events → their hashes.
    """
    for name, (event, digest) in checkpoint.heads.items():
        end, end_digest = later.heads.get(name, (0, ""))
        is_lost = end < event and checkpoint.at <= later.at
        other = end_digest if end == event else digests.get((name, event), digest)
        if is_lost or other != digest:
            yield event
