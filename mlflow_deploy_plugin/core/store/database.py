"""Opens the store: connects to the database, creates or upgrades the schema, and
returns a `Store`.

If two processes open a new store, one process migrates while the other waits. On
SQLite, each writing transaction takes the write lock at its start; on PostgreSQL, the
migration takes an advisory lock first.
"""

import json
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.audit import Login
from mlflow_deploy_plugin.core.store.audit_keys import Keys, read_key_file
from mlflow_deploy_plugin.core.store.audit_record import TrailRecord
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import (
    LAST_MIGRATING_COMMIT,
    READS_ONLY,
    VERSION_TABLE,
    Base,
)
from mlflow_deploy_plugin.core.store.transactions import (
    LOCK_SECONDS,
    redacted_url,
    store_unavailable,
)
from mlflow_deploy_plugin.core.version import __version__

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
SCHEMA = max(script.name[:4] for script in (MIGRATIONS / "versions").glob("0*"))
"""The newest Alembic revision, read from the script names, because the import of
Alembic takes 0.2 s.
"""
_STORED_SCHEMA = text(f"SELECT version_num FROM {VERSION_TABLE}")
_ADVISORY_LOCK = 0x6F6E6E78  # the letters "onnx": any number, but the same in all processes
_CONNECT_SECONDS = 10
_SERVER_LOCK_SECONDS = 5
_LOST_MACHINE = {
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
"""With these options, a connection to a failed machine ends after 20 s instead of
Linux's 15 minutes to two hours
(https://www.postgresql.org/docs/current/libpq-connect.html).
"""


def utc_now() -> datetime:
    return datetime.now(UTC)


def open_store(
    url: str,
    clock: Callable[[], datetime] = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    find_login: Callable[[], Login] = Login,
    *,
    keys: Keys | None = None,
    lock_seconds: int = LOCK_SECONDS,
) -> Store:
    """Return the store at an SQLAlchemy URL. Create or upgrade its schema if needed.

    `find_login` is called before the first write. `keys` sign the audit events, whose
    last ones are recorded beside the file of the keys. A transaction waits at most
    `lock_seconds` for another transaction.

    Raises InvalidConfig if the URL or its database is not supported, and
    StoreUnavailable if the store cannot be reached or its schema is unknown.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The URL may include a password, so the message does not contain the URL.
        raise InvalidConfig(
            "ONNXSERVE_STORE_URI is not an SQLAlchemy URI like postgresql+psycopg://user@host/db",
        ) from None
    engine = _engine(parsed, lock_seconds)
    try:
        with engine.begin() as connection:
            is_made = inspect(connection).has_table(VERSION_TABLE)
            if not is_made or connection.scalars(_STORED_SCHEMA).all() != [SCHEMA]:
                if connection.dialect.name == "postgresql":
                    connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"),
                        {"key": _ADVISORY_LOCK},
                    )
                _migrate(connection)
    except DBAPIError as error:
        engine.dispose()
        raise store_unavailable(engine.url, error) from None
    except StoreUnavailable:
        engine.dispose()
        raise
    record = TrailRecord(keys.file, parsed) if keys and keys.file else None
    return Store(engine, clock, monotonic, find_login, keys, record, lock_seconds)


def open_server_store(settings: Settings, find_login: Callable[[], Login] = Login) -> Store:
    """Return the store of MLflow's server, which signs its events unless no key file is
    set and none can be made in HOME.

    Raises the errors of `open_store` and `read_key_file`.
    """
    keys = None
    try:
        keys = read_key_file(settings.audit_key_path)
    except InvalidConfig:
        if settings.audit_key_file is not None or settings.audit_key_path.exists():
            raise
    return open_store(
        settings.store_url,
        find_login=find_login,
        keys=keys,
        lock_seconds=_SERVER_LOCK_SECONDS,
    )


def server_record(settings: Settings) -> TrailRecord | None:
    """Return the record of MLflow's server, also while the store is away; None without
    a key file.
    """
    path = settings.audit_key_path
    return TrailRecord(path, make_url(settings.store_url)) if path.exists() else None


def migration_config(connection: Connection) -> "Config":
    """Return Alembic's configuration, which passes the connection to
    `migrations/env.py`.
    """
    # Import Alembic only for migrations, because the import takes 0.2 s.
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _migrate(connection: Connection) -> None:
    """Create the tables of an empty database, or upgrade them to the current schema.

    Raises StoreUnavailable if a newer version has created the tables.
    """
    # Check again, because another process may have migrated.
    if not inspect(connection).has_table(VERSION_TABLE):
        Base.metadata.create_all(connection)
        connection.execute(
            text(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"),
        )
        connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES ('{SCHEMA}')"))
        return
    from alembic import command
    from alembic.script import ScriptDirectory

    config = migration_config(connection)
    scripts = ScriptDirectory.from_config(config)
    current = connection.scalar(_STORED_SCHEMA)
    revisions = {script.revision for script in scripts.walk_revisions()}
    if current not in revisions:
        raise StoreUnavailable(
            f"the store at {redacted_url(connection.engine.url)} has the schema {current}, which "
            f"onnxserve {__version__} does not support: upgrade onnxserve if a newer version "
            "created the store; if a build before the first release created the store, start "
            f"MLflow's server once with the commit {LAST_MIGRATING_COMMIT} of onnxserve, which "
            "migrates the schemas 0015 and 0016, or move the store's tables away",
        )
    command.upgrade(config, "head")


def _read_json(text: str | bytes) -> object:
    """Return the document, which is empty for a text that somebody else has written and
    that cannot be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


def _engine(url: URL, lock_seconds: int) -> Engine:
    """Return an engine with our timeouts. The folder of an SQLite file is created.

    Raises InvalidConfig if the database is not supported or its driver is missing, and
    StoreUnavailable if the folder cannot be created.
    """
    backend = url.get_backend_name()
    arguments: dict[str, object] = {}
    if backend == "sqlite":
        # SQLAlchemy before 2.1 does not decode %25.
        if make_url("sqlite:///%25").database == "%25" and url.database:
            url = url.set(database=unquote(url.database))
        arguments = {"timeout": lock_seconds}
        if url.database and url.database != ":memory:":
            try:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            except OSError as error:
                raise store_unavailable(url, error) from None
    elif backend == "postgresql":
        arguments = {"connect_timeout": _CONNECT_SECONDS, **_LOST_MACHINE}
        # No prepared statements: PgBouncer would share them among clients.
        if url.get_driver_name() == "psycopg":
            arguments["prepare_threshold"] = None
    try:
        engine = create_engine(
            url, connect_args=arguments, hide_parameters=True, json_deserializer=_read_json
        )
    except NoSuchModuleError:
        raise InvalidConfig(
            f"ONNXSERVE_STORE_URI: {url.drivername!r} is not a supported database",
        ) from None
    except ImportError as error:
        ours = 'pip install "mlflow-onnxserve[postgresql]"'
        if backend == "postgresql":
            hint = ours
        else:
            hint = "onnxserve is tested with SQLite and PostgreSQL"
        raise InvalidConfig(
            f"ONNXSERVE_STORE_URI: the driver of {url.drivername!r} is not installed ({error}): "
            f"{hint}",
        ) from None
    if backend == "sqlite":
        _take_write_lock_at_start(engine)
    return engine


def _take_write_lock_at_start(engine: Engine) -> None:
    """Take the write lock at the start of each writing transaction, because taking the
    lock after a read can fail.

    A read-only transaction sees the store as it was at the transaction's start, and
    blocks no other transaction.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        # `_begun` issues BEGIN, so that DDL is part of the transaction.
        connection.isolation_level = None
        deadline = time.monotonic() + LOCK_SECONDS
        while True:  # SQLite ignores its busy timeout while another process enables WAL.
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        is_read_only = connection.get_execution_options().get(READS_ONLY)
        begin = "BEGIN" if is_read_only else "BEGIN IMMEDIATE"
        connection.exec_driver_sql(begin)
