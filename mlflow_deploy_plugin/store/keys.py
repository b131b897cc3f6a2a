"""API keys in the store. The text of a key is in nobody's hands but its owner's: the store has its digest."""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from limits import parse
from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError

from mlflow_deploy_plugin.errors import AlreadyExists
from mlflow_deploy_plugin.statedir import KeyEntry, Scope, ValidKeys
from mlflow_deploy_plugin.store.audit import AuditEvent, current_actor, write_event
from mlflow_deploy_plugin.store.store import Store
from mlflow_deploy_plugin.store.tables import ApiKeyRow, from_row, storable_text

_PREFIX = "onnxserve_"
"""Scanners of source code for secrets can know a key by it."""
_RANDOM_BYTES = 32


@dataclass(frozen=True)
class ApiKey:
    """An API key without its text.

    Attributes:
        digest: SHA-256 of the text, in hex.
        endpoints: the endpoints that it holds for; empty: all.
        actor: who made it.
        expires_at: None: never.
        revoked_at: None: it was not revoked.
        limits: rates of its predictions, as 100/second, the shortest period first.
    """

    name: str
    digest: str
    scopes: Sequence[Scope]
    endpoints: Sequence[str]
    actor: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    limits: Sequence[str] = ()

    @property
    def entry(self) -> KeyEntry:
        """The rights of the key as servers read them."""
        return KeyEntry(
            name=self.name,
            scopes=tuple(self.scopes),
            endpoints=tuple(self.endpoints),
            expires_at=None if self.expires_at is None else self.expires_at.timestamp(),
            limits=tuple(self.limits),
        )


class ApiKeys:
    """The API keys of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self,
        name: str,
        scopes: Collection[Scope],
        endpoints: Collection[str] = (),
        lifetime: timedelta | None = None,
        actor: str | None = None,
        limits: Collection[str] = (),
    ) -> tuple[ApiKey, str]:
        """Make a key, with its audit event. Returns the key and its text, which cannot be had again.

        Args:
            limits: rates of its predictions, as 100/second.

        Raises:
            AlreadyExists: the name is, or was, that of another key: the audit trail and the logs have it.
        """
        text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now, by = self._store.now(), actor or current_actor()
        row = ApiKeyRow(
            name=name,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            scopes=sorted(scopes),
            endpoints=sorted(endpoints),
            limits=sorted(limits, key=lambda rate: parse(rate).get_expiry()),  # a short refusal costs no quota
            actor=storable_text(by, 255),
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        try:
            with self._store.transaction() as session:
                session.add(row)
                session.flush()
                detail = {"scopes": row.scopes, "endpoints": row.endpoints, "limits": row.limits}
                write_event(session, AuditEvent(now, by, "key.create", after=f"key {name}", detail=detail))
                return from_row(row, ApiKey), text
        except IntegrityError:
            raise AlreadyExists(f"there is, or was, a key {name!r} already; choose another name") from None

    def revoke(self, name: str, why: str = "") -> ApiKey | None:
        """Revoke the key now, with its audit event. Return None if no such key holds."""
        now, by = self._store.now(), current_actor()
        query = select(ApiKeyRow).where(ApiKeyRow.name == name, ApiKeyRow.revoked_at.is_(None)).with_for_update()
        with self._store.transaction() as session:
            row = session.scalars(query).one_or_none()
            if row is None:
                return None
            row.revoked_at = now
            write_event(session, AuditEvent(now, by, "key.revoke", before=f"key {name}", why=why))
            session.flush()
            return from_row(row, ApiKey)

    def created(self) -> list[ApiKey]:
        """Return all keys, also those that were revoked, oldest first."""
        return self._store.read(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.name), ApiKey)

    def valid(self) -> list[ApiKey]:
        """Return the keys that hold now, by their names."""
        unexpired = or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > self._store.now())
        query = select(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None), unexpired).order_by(ApiKeyRow.name)
        return self._store.read(query, ApiKey)

    def valid_entries(self) -> ValidKeys:
        """Return the keys that hold now, as servers read them."""
        return ValidKeys(keys={key.digest: key.entry for key in self.valid()})
