"""The tables, as SQLAlchemy sees them. Alembic's `migrations/versions` make them; a test holds both equal.

Every name starts with `onnxserve_`: MLflow's own database has a table `endpoints` and an `alembic_version`, and both
may live in one database.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

VERSION_TABLE = "onnxserve_alembic_version"


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no time zone, so it is taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Every table of the store."""


class EndpointRow(Base):
    """One endpoint that was asked for; whether it runs is the backend's to say."""

    __tablename__ = "onnxserve_endpoints"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    target: Mapped[str] = mapped_column(String(255))
    spec: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """Who did what, when. Rows outlive the endpoint that they speak of."""

    __tablename__ = "onnxserve_audit_events"

    # SQLite numbers rows by itself only in a column of the type INTEGER
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(255))
    action: Mapped[str] = mapped_column(String(63))
    endpoint: Mapped[str] = mapped_column(String(63), index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
