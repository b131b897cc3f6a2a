"""The audit events that count, and the changes of the trail that a check finds."""

import json
import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.store.audit import EVENT_FIELDS, AuditEvent, event_of
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.audit_tree import (
    ADOPT,
    STREAMED,
    newest_head,
    stored_leaf,
    subject_of,
)
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, TreeHead
from mlflow_deploy_plugin.core.store.merkle import MerkleTree, leaf_hash
from mlflow_deploy_plugin.core.store.tables import AuditLeafRow, AuditRow

BROKEN = "broken"
"""The action of the event that `counted_events` returns in the place of a fault. It is
never stored.
"""


@dataclass(frozen=True)
class CheckedTree:
    """The tree of a checkpoint of a store.

    Attributes:
        fault: why the stored leaves are not those of a checkpoint that a known key has
            signed; empty if they are, and before the first checkpoint.
        head: the newest checkpoint; None with a fault and before the first checkpoint.
        tree: the leaves, of which there may be more than those of the checkpoint.
        by_model: the places of the events by the `subject_of` their models.
    """

    fault: str
    head: TreeHead | None
    tree: MerkleTree
    by_model: Mapping[str, "array[int]"]

    @property
    def size(self) -> int:
        return self.head.edge.size if self.head else 0

    def begins_with(self, checkpoint: Checkpoint) -> bool:
        """Return True if the tree contains an older tree of the store."""
        is_shorter = checkpoint.size <= self.size
        return is_shorter and self.tree.root(checkpoint.size) == checkpoint.root

    def has(self, row: Any) -> bool:
        """Return True if the row gives the leaf at its place."""
        if row.place not in range(self.size):
            return False
        return self.tree.subtree(0, row.place) == stored_leaf(row)

    def places(self, model: str) -> list[int]:
        """Return the places of a model's events and of adoptions."""
        places = [*self.by_model.get(subject_of(model), ()), *self.by_model.get(ADOPT, ())]
        return sorted(place for place in places if place < self.size)


class TrailView:
    """The leaves of a store, which are read and checked once. Threads may share a view:
    their transactions may see different states of the store.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset("")

    def _reset(self, log: str) -> None:
        self._log = log
        self.tree = MerkleTree()
        self._by_model: dict[str, array[int]] = {}

    def read(self, session: Session, keys: Keys) -> CheckedTree:
        """Return the tree of the newest checkpoint. Only new leaves are read."""
        head, fault = newest_head(session, keys)
        if head is None:
            return self._checked(None, fault)
        size = head.edge.size
        with self._lock:
            if head.log != self._log:
                self._reset(head.log)
            for _ in range(2):  # The second time from the first leaf.
                self._add_leaves(session, size)
                if self.tree.size >= size and self.tree.root(size) == head.edge.root:
                    return self._checked(head)
                self._reset(head.log)
            fault = "the leaves of the audit trail are not those of its newest checkpoint"
            return self._checked(None, fault)

    def _checked(self, head: TreeHead | None, fault: str = "") -> CheckedTree:
        return CheckedTree(fault, head, self.tree, self._by_model)

    def _add_leaves(self, session: Session, size: int) -> None:
        new = AuditLeafRow.place.between(self.tree.size, size - 1)
        query = select(AuditLeafRow.entry).where(new).order_by(AuditLeafRow.place)
        for entry in session.scalars(query, execution_options=STREAMED):
            subject = ""  # of an entry that was changed, whose root is wrong
            with suppress(KeyError, TypeError, ValueError, RecursionError):
                subject = str(json.loads(entry)["model"])
            self._by_model.setdefault(subject, array("q")).append(self.tree.size)
            self.tree.add(leaf_hash(entry.encode()))


def counted_events(
    view: TrailView,
    session: Session,
    model: str,
    keys: Keys,
    recorded: Checkpoint | None = None,
) -> list[AuditEvent]:
    """Return the events of a model that may decide something, oldest first.

    In the place of an event that was removed or changed, and of an adoption, the list
    has an event with the action `BROKEN`. It has nothing else if the tree is not that
    of a signed checkpoint, or does not contain the `recorded` one.
    """
    tree = view.read(session, keys)
    broken = AuditEvent(datetime.now(UTC), "", BROKEN, model=model)
    if tree.fault or (recorded and not tree.begins_with(recorded)):
        return [broken]
    rows = {row.place: row for row in session.execute(_rows(model))}
    counted = []
    for place in tree.places(model):
        row = rows.get(place)
        if row is None or not tree.has(row):
            counted.append(broken)
        elif row.signed_by in keys.public:
            counted.append(event_of(row))
    return counted


def _rows(model: str | None = None) -> Select[Any]:
    columns = [getattr(AuditRow, name) for name in ("place", "signed_by", *EVENT_FIELDS)]
    query = select(*columns).where(AuditRow.place.is_not(None)).order_by(AuditRow.place)
    return query if model is None else query.where(AuditRow.model == model)


@dataclass(frozen=True)
class TrailState:
    """The state of the audit trail.

    Attributes:
        state: `changed` with a fault; `unsigned` if no event is signed; else `intact`.
        events: the number of events in the tree.
        faults: a line for each.
        signed: the number of events that count.
        keys: the ids of the keys with which signatures were checked.
        unused_keys: the ids of the keys that no event names.
    """

    state: Literal["intact", "changed", "unsigned"]
    events: int
    faults: tuple[str, ...]
    signed: int = 0
    keys: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()


def check_trail(
    session: Session,
    keys: Keys,
    earlier: Sequence[Checkpoint],
) -> TrailState:
    """Compare each event with its leaf, and the tree with its signed checkpoint and
    `earlier` ones.
    """
    tree = TrailView().read(session, keys)
    faults = [tree.fault] if tree.fault else []
    for checkpoint in earlier:
        if not faults and not tree.begins_with(checkpoint):
            faults.append(
                f"the trail does not contain the {checkpoint.size:,} events of an earlier "
                "checkpoint: events were removed or changed"
            )
    signers: Counter[str] = Counter()
    expected = 0
    placed = _rows().where(AuditRow.place < tree.size)
    for row in session.execute(placed, execution_options=STREAMED):
        if row.place > expected:
            faults.append(_removed(expected, row.place))
        if not tree.has(row) or row.place < expected:
            subject = f"{row.action} of {row.model or row.endpoint} by {row.actor}"
            faults.append(f"event {row.place} ({subject}) was changed, inserted or moved")
        else:
            signers[row.signed_by] += 1
        expected = row.place + 1
    if expected < tree.size:
        faults.append(_removed(expected, tree.size))
    signed = sum(signers[key] for key in keys.public)
    state: Literal["intact", "changed", "unsigned"] = "intact" if signed else "unsigned"
    unused = tuple(sorted(keys.public.keys() - signers.keys()))
    return TrailState(
        "changed" if faults else state,
        tree.size,
        tuple(faults),
        signed,
        tuple(keys.public),
        unused,
    )


def _removed(start: int, end: int) -> str:
    if end - start == 1:
        return f"event {start} was removed"
    return f"the events {start} to {end - 1} were removed"
