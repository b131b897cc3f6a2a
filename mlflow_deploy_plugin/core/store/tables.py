"""The tables of the store for SQLAlchemy. A test compares the tables with Alembic's
`migrations/versions`.

Each table name starts with `onnxserve_`, because MLflow's tables may be in the same
database.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ValueT = TypeVar("ValueT", bound="DataclassInstance")
Json = dict[str, Any]
"""A JSON object in a column."""
VERSION_TABLE = "onnxserve_alembic_version"
LAST_MIGRATING_COMMIT = "4dff77c38"
"""The last commit that migrates stores of builds before the first release."""
READS_ONLY = "onnxserve_reads_only"
"""The name of the execution option that marks a connection whose transactions only
read.
"""


_TIMES = frozenset({"started_at", "gated_at"})
"""The times among the fields of `RetrainingFigures`."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time in UTC. SQLite stores no time zone, so the time zone is removed on writes
    and added on reads.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return self.process_bind_param(value, dialect)
        return value.replace(tzinfo=UTC)


@dataclass(frozen=True)
class RetrainingFigures:
    """The figures of a retraining. A figure is None, and omitted in JSON, until the
    step that sets the figure.

    Attributes:
        attempt: the number of the training, from 1.
        host: the machine of the training (`process.host`).
        rows / held_out_rows: the number of labelled rows for the training, and for the
            evaluation of the version.
        data_digest: SHA-256 of the training rows.
        window: `START/END` of the rows.
        dataset / target: the URI and the label column of the held-out rows.
        evaluation: the figures of the gate's evaluation by name; in JSON, each key is
            `evaluation.NAME`.
        gate / gate_reason / gate_report: the state, the reason and the report of the
            gate's verdict.
        against: the version that the new version was compared with.
        compared: False if the versions were not compared on labelled rows, although the
            policy requires it.
    """

    attempt: int | None = None
    host: str | None = None
    rows: int | None = None
    data_digest: str | None = None
    held_out_rows: int | None = None
    window: str | None = None
    started_at: datetime | None = None
    dataset: str | None = None
    target: str | None = None
    evaluation: Mapping[str, float] = field(default_factory=dict)
    gate: str | None = None
    gate_reason: str | None = None
    gate_report: str | None = None
    against: str | None = None
    gated_at: datetime | None = None
    compared: bool | None = None

    def as_json(self) -> dict[str, str | float | bool]:
        figures = {name: value for name, value in vars(self).items() if value is not None}
        for name in _TIMES & figures.keys():
            figures[name] = figures[name].isoformat()
        scores = figures.pop("evaluation")
        return figures | {f"evaluation.{name}": value for name, value in scores.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RetrainingFigures":
        """Return the figures of a document. Unknown keys are ignored."""
        values = {
            entry.name: document[entry.name] for entry in fields(cls) if entry.name in document
        }
        for name in _TIMES & values.keys():
            values[name] = datetime.fromisoformat(values[name])
        values["evaluation"] = {
            name.partition(".")[2]: value
            for name, value in document.items()
            if name.startswith("evaluation.")
        }
        return cls(**values)


class _FiguresJson(sa.TypeDecorator[RetrainingFigures]):
    impl = sa.JSON
    cache_ok = True

    def process_bind_param(
        self,
        value: RetrainingFigures | None,
        dialect: sa.Dialect,
    ) -> Mapping[str, Any] | None:
        return value.as_json() if value is not None else None

    def process_result_value(
        self,
        value: Mapping[str, Any] | None,
        dialect: sa.Dialect,
    ) -> RetrainingFigures | None:
        return None if value is None else RetrainingFigures.from_json(value)


Str31 = Annotated[str, 31]
Str63 = Annotated[str, 63]
Str64 = Annotated[str, 64]
Str255 = Annotated[str, 255]
Str512 = Annotated[str, 512]
Long = Annotated[int, 64]


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: sa.Text,
        Str31: sa.String(31),
        Str63: sa.String(63),
        Str64: sa.String(64),
        Str255: sa.String(255),
        Str512: sa.String(512),
        Long: sa.BigInteger,
        datetime: UtcDateTime,
        Json: sa.JSON,
        dict[str, int]: sa.JSON,
        list[Json]: sa.JSON,
        list[str]: sa.JSON,
    }
    """The type of a column, unless the column specifies another type."""


RowId = Annotated[
    int,
    mapped_column(sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
]
"""A generated id. SQLite generates ids only for the type INTEGER."""
EmptyText = Annotated[str, mapped_column(default="")]
Zero = Annotated[int, mapped_column(default=0)]
OfEndpoint = Annotated[str, mapped_column(sa.String(63), index=True)]


RowT = TypeVar("RowT", bound=Base)


def from_row(row: Base, kind: type[ValueT]) -> ValueT:
    return kind(**{field.name: getattr(row, field.name) for field in fields(kind)})


def read_rows(
    session: Session,
    query: sa.Select[RowT],
    kind: type[ValueT],
) -> list[ValueT]:
    """Return the rows of a query as frozen dataclasses. This takes up to half the time
    of ORM entities.
    """
    row = query.column_descriptions[0]["entity"]
    columns = query.with_only_columns(*(getattr(row, field.name) for field in fields(kind)))
    return [kind(*values) for values in session.execute(columns)]


def storable_text(text: str, longest: int | None) -> str:
    """Replace characters that PostgreSQL or UTF-8 cannot store. A text longer than
    `longest` is cut and ends with …
    """
    storable = (
        text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
    if longest is None or len(storable) <= longest:
        return storable
    return storable[: longest - 1] + "…"


def write_fields(row: Base, value: "DataclassInstance", *names: str) -> None:
    for name in names:
        written = getattr(value, name)
        if isinstance(written, str):
            written = storable_text(written, None)
        setattr(row, name, written)


def given(**columns: object) -> dict[str, object]:
    """Return the columns whose values are not None, for `filter_by`."""
    return {name: value for name, value in columns.items() if value is not None}


class EndpointRow(Base):
    __tablename__ = "onnxserve_endpoints"

    name: Mapped[Str63] = mapped_column(primary_key=True)
    target: Mapped[Str255]
    spec: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    unapproved: Mapped[list[Json]] = mapped_column(default=list, server_default="[]")


IS_DELETED = sa.text("action = 'delete'")
"""The condition of a partial index. A query uses the index only if the query's
condition has the same text.
"""


class AuditRow(Base):
    """An audit event. The row is kept when its endpoint is deleted."""

    __tablename__ = "onnxserve_audit_events"
    __table_args__ = (
        sa.Index(
            "ix_onnxserve_audit_events_deleted",
            "endpoint",
            sqlite_where=IS_DELETED,
            postgresql_where=IS_DELETED,
        ),
        sa.Index("ix_onnxserve_audit_events_model", "model", "id"),
    )

    id: Mapped[RowId]
    at: Mapped[datetime]
    actor: Mapped[Str255]
    action: Mapped[Str63]
    endpoint: Mapped[OfEndpoint]
    model: Mapped[Str512] = mapped_column(server_default="")
    version: Mapped[Str255] = mapped_column(server_default="")
    before: Mapped[str] = mapped_column(server_default="")
    after: Mapped[str] = mapped_column(server_default="")
    why: Mapped[str] = mapped_column(server_default="")
    detail: Mapped[Json]
    # See `audit_tree.py`: the place of the event in the tree, which an event has after
    # the server's next event, and the id of the key of the server that has written it.
    place: Mapped[int | None] = mapped_column(sa.BigInteger, index=True)
    signed_by: Mapped[Str63] = mapped_column(server_default="")


class AuditLeafRow(Base):
    """A leaf of the tree over the audit events (`audit_tree.py`)."""

    __tablename__ = "onnxserve_audit_leaves"

    place: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    entry: Mapped[str]


class AuditTreeRow(Base):
    """The tree over the audit events, in the row 1: the newest checkpoint, and the
    hashes of the right edge in Base64.
    """

    __tablename__ = "onnxserve_audit_tree"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    checkpoint: Mapped[str]
    edge: Mapped[str]


_IS_LIVE = sa.text("ended_at IS NULL")


class RolloutRow(Base):
    """A rollout. The row is kept when its endpoint is deleted."""

    __tablename__ = "onnxserve_rollouts"
    __table_args__ = (
        sa.Index(
            "ux_onnxserve_rollouts_live",
            "endpoint",
            unique=True,
            sqlite_where=_IS_LIVE,
            postgresql_where=_IS_LIVE,
        ),
    )

    id: Mapped[RowId]
    endpoint: Mapped[OfEndpoint]
    spec: Mapped[Json]
    state: Mapped[Str31]
    step: Mapped[Zero]
    step_at: Mapped[datetime]
    figures: Mapped[Json] = mapped_column(default=dict)
    reason: Mapped[EmptyText]
    revision: Mapped[Zero]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class LeaseRow(Base):
    """A lease that is held. The row of a killed holder remains until the next holder
    takes the lease.
    """

    __tablename__ = "onnxserve_leases"

    name: Mapped[Str255] = mapped_column(primary_key=True)
    holder: Mapped[Str255]
    token: Mapped[Long]
    renewals: Mapped[Long]
    seconds: Mapped[float] = mapped_column(sa.Float)
    expires_at: Mapped[datetime]


_COUNTED = ("by_hand", "endpoint", "monitor", "state", "verdict", "attempts", "updated_at")


class MonitorWindowRow(Base):
    """A revision of a monitor's window. The row is deleted with its endpoint."""

    __tablename__ = "onnxserve_monitor_windows"
    __table_args__ = (
        sa.UniqueConstraint(
            "endpoint",
            "monitor",
            "window_start",
            "revision",
            name="ux_onnxserve_monitor_windows",
        ),
        # The counts for Prometheus read only this index, not the table.
        sa.Index("ix_onnxserve_monitor_windows_counted", *_COUNTED),
    )

    id: Mapped[RowId]
    endpoint: Mapped[Str63]
    monitor: Mapped[Str255]
    start: Mapped[datetime] = mapped_column("window_start")
    end: Mapped[datetime] = mapped_column("window_end")
    revision: Mapped[int]
    by_hand: Mapped[bool] = mapped_column(server_default=sa.false())
    state: Mapped[Str31] = mapped_column(index=True)
    verdict: Mapped[Str31] = mapped_column(default="")
    reason: Mapped[EmptyText]
    rows: Mapped[Long] = mapped_column(default=0)
    log_rows: Mapped[Long] = mapped_column(default=0)
    log_digest: Mapped[Str64] = mapped_column(default="")
    attempts: Mapped[Zero]
    not_before: Mapped[datetime | None]
    run_id: Mapped[Str63] = mapped_column(default="")
    run_url: Mapped[EmptyText]
    figures: Mapped[Json] = mapped_column(default=dict)
    evidence: Mapped[Json] = mapped_column(default=dict, server_default="{}")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class MonitorRow(Base):
    __tablename__ = "onnxserve_monitors"

    endpoint: Mapped[Str63] = mapped_column(primary_key=True)
    monitor: Mapped[Str255] = mapped_column(primary_key=True)
    paused: Mapped[bool] = mapped_column(default=False)
    paused_by: Mapped[Str255] = mapped_column(default="")
    made_up_to: Mapped[datetime | None]
    consecutive: Mapped[Zero]
    note: Mapped[EmptyText]
    note_kind: Mapped[Str31] = mapped_column(default="", server_default="")
    baseline: Mapped[Json] = mapped_column(default=dict, server_default="{}")
    # The counts of expired scheduled windows: judged windows by verdict, and failed
    # attempts.
    expired: Mapped[dict[str, int]] = mapped_column(default=dict, server_default="{}")
    expired_failures: Mapped[int] = mapped_column(default=0, server_default="0")


class AlertRow(Base):
    __tablename__ = "onnxserve_alerts"

    id: Mapped[RowId]
    fingerprint: Mapped[Str255] = mapped_column(index=True)
    endpoint: Mapped[OfEndpoint]
    monitor: Mapped[Str255]
    state: Mapped[Str31]
    first_at: Mapped[datetime]
    last_at: Mapped[datetime]
    told_at: Mapped[datetime | None]
    count: Mapped[int]
    detail: Mapped[Json]


class SilenceRow(Base):
    __tablename__ = "onnxserve_silences"

    id: Mapped[RowId]
    endpoint: Mapped[OfEndpoint]
    monitor: Mapped[Str255]
    until: Mapped[datetime]
    why: Mapped[str]
    actor: Mapped[Str255]
    created_at: Mapped[datetime]


class ApiKeyRow(Base):
    """An API key, identified by the digest of its text. The row of a revoked key is
    kept.
    """

    __tablename__ = "onnxserve_api_keys"

    name: Mapped[Str63] = mapped_column(primary_key=True)
    digest: Mapped[Str64] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    endpoints: Mapped[list[str]]
    actor: Mapped[Str255]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    limits: Mapped[list[str]] = mapped_column(server_default="[]")


class RetrainingRow(Base):
    """A retraining. The row is kept when its endpoint is deleted."""

    __tablename__ = "onnxserve_retrainings"

    id: Mapped[RowId]
    endpoint: Mapped[OfEndpoint]
    monitor: Mapped[Str255]
    model: Mapped[Str512] = mapped_column(index=True)
    cause: Mapped[Json]
    spec: Mapped[Json]
    state: Mapped[Str31]
    run_id: Mapped[Str63] = mapped_column(default="")
    version: Mapped[Str255] = mapped_column(default="")
    rollout_id: Mapped[Long | None]
    waits_for: Mapped[Str31] = mapped_column(default="", server_default="")
    reason: Mapped[EmptyText]
    figures: Mapped[RetrainingFigures] = mapped_column(_FiguresJson, default=RetrainingFigures)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class RegistryChangeRow(Base):
    __tablename__ = "onnxserve_registry_changes"

    model: Mapped[Str512] = mapped_column(primary_key=True)
    count: Mapped[Long]
    changed_at: Mapped[datetime] = mapped_column(index=True)


class InboxRow(Base):
    """A pushed request with its response (`inbox.py`). The row is deleted with its
    endpoint.
    """

    __tablename__ = "onnxserve_inbox"
    __table_args__ = (
        sa.UniqueConstraint("endpoint", "id", name="ux_onnxserve_inbox"),
        # The size of an inbox is read from only this index, not from the bodies.
        sa.Index("ix_onnxserve_inbox_size", "endpoint", "size"),
    )

    number: Mapped[RowId]
    endpoint: Mapped[Str63]
    id: Mapped[Str255]
    time: Mapped[datetime]
    request: Mapped[bytes | None]
    response: Mapped[bytes | None]
    size: Mapped[int]
    conflicts: Mapped[int]
    received_at: Mapped[datetime]
