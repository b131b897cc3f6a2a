"""API keys in the store, identified by the digests of their texts."""

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, Scope, ValidKeys
from mlflow_deploy_plugin.core.store.audit import save_row
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import ApiKeyRow, storable_text

_PREFIX = "onnxserve_"
"""The prefix lets secret scanners recognize a key in source code."""
_RANDOM_BYTES = 32
_UNREVOKED = select(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None)).with_for_update()


@dataclass(frozen=True)
class ApiKey:
    """An API key without its text.

    Attributes:
        digest: SHA-256 of the text, in hexadecimal.
        endpoints: the endpoints to which the key gives access; empty for all endpoints.
        actor: the user who created the key.
        limits: rate limits for predictions with the key, such as 100/second, with the
            shortest period first.
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
        return KeyEntry(
            name=self.name,
            scopes=tuple(self.scopes),
            endpoints=tuple(self.endpoints),
            expires_at=None if self.expires_at is None else self.expires_at.timestamp(),
            limits=tuple(self.limits),
        )


@dataclass(frozen=True)
class ApiKeys:
    store: Store

    def create(
        self,
        name: str,
        scopes: Collection[Scope],
        endpoints: Collection[str] = (),
        lifetime: timedelta | None = None,
        actor: str | None = None,
        limits: Collection[str] = (),
    ) -> tuple[ApiKey, str]:
        """Create a key with an audit event. Return the key and the text of the key,
        which is not stored.

        The audit trail and the logs identify keys by name, so AlreadyExists is raised
        if a key ever had the name.
        """
        from limits import parse  # This import is slow, and most commands do not create a key.

        text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        now = self.store.now()
        by = actor or self.store.user
        row = ApiKeyRow(
            name=name,
            digest=hashlib.sha256(text.encode()).hexdigest(),
            scopes=sorted(scopes),
            endpoints=sorted(endpoints),
            # Short limits are checked first, so that a refused request does not count
            # against longer limits.
            limits=sorted(limits, key=lambda rate: parse(rate).get_expiry()),
            actor=storable_text(by, 255),
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        try:
            with self.store.transaction() as session:
                detail = {"scopes": row.scopes, "endpoints": row.endpoints, "limits": row.limits}
                after = f"key {name}"
                self.store.write_event(session, "key.create", by, after=after, detail=detail)
                return save_row(session, row, ApiKey), text
        except IntegrityError:
            raise AlreadyExists(
                f"a key with the name {name!r} exists or existed; choose another name",
            ) from None

    def revoke(self, name: str, why: str = "") -> ApiKey | None:
        """Revoke the key now with an audit event. Return None if no valid key has this
        name.
        """
        with self.store.transaction() as session:
            row = session.scalars(_UNREVOKED.where(ApiKeyRow.name == name)).one_or_none()
            if row is None:
                return None
            self._revoke(session, row, why)
            return save_row(session, row, ApiKey)

    def withdraw(self, endpoint: str) -> list[str]:
        """Remove a deleted endpoint from all keys, so that no key can access a new
        endpoint of the same name.

        Keys for only this endpoint are revoked. Return the names of the revoked keys.
        """
        revoked = []
        with self.store.transaction() as session:
            for row in session.scalars(_UNREVOKED.order_by(ApiKeyRow.name)):
                remaining = [name for name in row.endpoints if name != endpoint]
                if not remaining and row.endpoints:
                    self._revoke(session, row, f"its endpoint {endpoint} was deleted")
                    revoked.append(row.name)
                else:
                    row.endpoints = remaining
        return revoked

    def _revoke(self, session: Session, row: ApiKeyRow, why: str) -> None:
        row.revoked_at = self.store.now()
        self.store.write_event(session, "key.revoke", before=f"key {row.name}", why=why)

    def created(self) -> list[ApiKey]:
        """Return all keys, including revoked keys, oldest first."""
        return self.store.read(
            select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.name),
            ApiKey,
        )

    def valid(self, **only: str) -> list[ApiKey]:
        """Return the valid keys, or only those with the value of a column. The digest
        has an index.
        """
        unexpired = or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > self.store.now())
        query = select(ApiKeyRow).filter_by(revoked_at=None, **only).where(unexpired)
        return self.store.read(query.order_by(ApiKeyRow.name), ApiKey)

    def valid_entries(self) -> ValidKeys:
        return ValidKeys(keys={key.digest: key.entry for key in self.valid()})
