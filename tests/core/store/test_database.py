"""Opening the store: migrations, races, and error messages without passwords."""

import os
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url, text

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.store.database import SCHEMA, migration_config, open_store, utc_now
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import LAST_MIGRATING_COMMIT, VERSION_TABLE, Base
from mlflow_deploy_plugin.core.store.transactions import store_unavailable
from tests.support.refusals import mentions, refused

OPEN_AND_ADD = """
import sys
from mlflow_deploy_plugin.core.errors import AlreadyExists
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
store = open_store(sys.argv[1])
try:
    store.add_endpoint("onnxserve", new_endpoint("raced", "m"))
    print("won")
except AlreadyExists:
    print("lost")
"""


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a%b", "a#b c", "ü'x"])
def test_store_path_may_have_special_characters(tmp_path, name):
    open_store(Settings(home=tmp_path / name).store_url).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "onnxserve.db").exists()


def test_new_store_has_all_tables(database_url):
    open_store(database_url).close()

    with create_engine(database_url).connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.long
def test_processes_open_a_new_store_at_once(database_url):
    command = [sys.executable, "-c", OPEN_AND_ADD, database_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]

    answers = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert sorted(answers) == ["lost", "lost", "won"]
    with closing(open_store(database_url)) as store:
        assert store.remove_endpoint("raced")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_current_store_opens_without_alembic(database_url):
    code = (
        "import sys; from mlflow_deploy_plugin.core.store.database import open_store; "
        "open_store(sys.argv[1]).close(); open_store(sys.argv[1]); "
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, database_url], check=True, timeout=60)

    with create_engine(database_url).connect() as connection:
        scripts = ScriptDirectory.from_config(migration_config(connection))
        assert scripts.get_current_head() == SCHEMA


def test_store_shares_a_database_with_mlflow(tmp_path):
    url = f"sqlite:///{tmp_path}/mlflow.db"
    with create_engine(url).begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('mlflows-own')"))
        connection.execute(text("CREATE TABLE endpoints (endpoint_id VARCHAR(36))"))

    store = open_store(url)

    assert store.endpoints() == []
    store.close()


@pytest.mark.parametrize("schema", ["9999", "0016"])
def test_unknown_schema_is_left_alone(tmp_path, schema):
    """A newer onnxserve, or a build before the first release, has created the store."""
    url = f"sqlite:///{tmp_path}/store.db"
    open_store(url).close()
    stamp = text(f"UPDATE {VERSION_TABLE} SET version_num = '{schema}'")
    with create_engine(url).begin() as connection:
        connection.execute(stamp)

    with pytest.raises(
        StoreUnavailable, match=f"{tmp_path}/store.db .*{schema}.* {LAST_MIGRATING_COMMIT} "
    ) as caught:
        open_store(url)

    assert "\n" not in caught.value.message


def test_invalid_database_file_is_refused(tmp_path):
    (tmp_path / "store.db").write_bytes(
        b"no database at all, but long enough to have a header" * 20
    )

    with pytest.raises(StoreUnavailable) as caught:
        open_store(f"sqlite:///{tmp_path}/store.db")

    assert mentions(caught.value.message, "not a database")
    assert "\n" not in caught.value.message


def test_exhausted_connections_are_an_outage(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/store.db", pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    store = Store(engine, utc_now)

    with store.transaction() as hanging:
        hanging.connection()
        with pytest.raises(StoreUnavailable, match="connection timed out"):
            store.names()


def test_folder_error_names_the_settings(tmp_path):
    (tmp_path / "file").touch()

    with refused(StoreUnavailable, f"{tmp_path}/file", "ONNXSERVE_HOME", "ONNXSERVE_STORE_URI"):
        open_store(f"sqlite:///{tmp_path}/file/store.db")


def test_read_only_folder_error_names_the_setting():
    denied = sqlite3.OperationalError("attempt to write a readonly database")
    denied.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY  # The home belongs to another user.
    assert "ONNXSERVE_HOME" in store_unavailable(make_url("sqlite:///store.db"), denied).message


def test_unreachable_database_error_hides_password():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreUnavailable) as caught:
            open_store(f"postgresql+psycopg://onnx:s3cret@127.0.0.1:{port}/db?application_name=x")

    assert mentions(caught.value.message, f"postgresql+psycopg://onnx:***@127.0.0.1:{port}/db")
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.postgresql
def test_wrong_password_is_not_shown(postgresql_url):
    with pytest.raises(StoreUnavailable) as caught:
        open_store(postgresql_url.replace("s3cr", "wr0ng"))

    assert "password authentication failed" in caught.value.message
    assert "wr0ng" not in caught.value.message


@pytest.mark.postgresql
def test_closed_connections_are_reopened(postgresql_url):
    store = open_store(postgresql_url)
    store.endpoints()
    with create_engine(postgresql_url).begin() as connection:
        other_sessions = "pid <> pg_backend_pid() AND datname = 'postgres'"
        connection.execute(
            text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {other_sessions}")
        )

    with pytest.raises(StoreUnavailable):
        store.endpoints()

    assert store.endpoints() == []  # This call opens a new connection.
    store.close()


@pytest.mark.postgresql
def test_statements_are_not_prepared_for_pgbouncer(postgresql_url):
    connections = []
    event.listen(Engine, "connect", lambda connection, _: connections.append(connection), once=True)
    store = open_store(postgresql_url)
    for _ in range(10):  # psycopg prepares a statement at its sixth execution.
        store.endpoints()
    assert connections[0].execute("SELECT statement FROM pg_prepared_statements").fetchall() == []
    store.close()


@pytest.mark.postgresql
@pytest.mark.skipif(sys.platform != "linux", reason="the option is Linux's")
def test_connection_to_a_lost_machine_ends(postgresql_url):
    connections = []
    event.listen(Engine, "connect", lambda connection, _: connections.append(connection), once=True)
    store = open_store(postgresql_url)
    with socket.socket(fileno=os.dup(connections[0].fileno())) as opened:
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
    store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("onnx:s3cret@host", "is not an SQLAlchemy URI"),
        ("postgresql://onnx:s3cret@host:port/db", "is not an SQLAlchemy URI"),
        ("nonsense://onnx:s3cret@host/db", "'nonsense' is not a supported database"),
        (
            "oracle+oracledb://onnx:s3cret@host/db",
            "No module named 'oracledb'.*SQLite and PostgreSQL",
        ),
    ],
)
def test_invalid_uri_error_hides_password(url, said):
    with pytest.raises(InvalidConfig, match=said) as caught:
        open_store(url)

    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_locked_new_store_is_waited_for(tmp_path, held):
    path = tmp_path / "store.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(held)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(lambda: open_store(f"sqlite:///{path}").close())
        with pytest.raises(TimeoutError):
            opened.result(0.5)
        other.execute("COMMIT")
        other.close()

        opened.result(30)
