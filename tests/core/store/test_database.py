"""Opening the store: migrations, races, and error messages without passwords."""

import os
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url, text

from mlflow_deploy_plugin.core.errors import InvalidConfig, StoreUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import SCHEMA, migration_config, open_store, utc_now
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.core.store.tables import VERSION_TABLE, Base
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
def test_the_store_lies_in_its_home_whatever_the_folder_is_called(tmp_path, name):
    open_store(Settings(home=tmp_path / name).store_url).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "onnxserve.db").exists()


def url_of(request, tmp_path, kind):
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return request.getfixturevalue("postgresql_url")


both = pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
)


@both
def test_new_store_has_the_tables_of_the_models(request, tmp_path, kind):
    url = url_of(request, tmp_path, kind)
    open_store(url).close()

    with create_engine(url).connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.long
@both
def test_of_processes_that_open_a_new_store_at_once_all_succeed_and_one_gets_the_name(
    request, tmp_path, kind
):
    url = url_of(request, tmp_path, kind)
    command = [sys.executable, "-c", OPEN_AND_ADD, url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]

    answers = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert sorted(answers) == ["lost", "lost", "won"]
    store = open_store(url)
    assert store.remove_endpoint("raced")
    store.close()


def test_a_store_that_is_new_or_up_to_date_is_opened_without_alembic(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    code = "import sys; from mlflow_deploy_plugin.core.store.database import open_store; "
    code += (
        "open_store(sys.argv[1]).close(); open_store(sys.argv[1]); "
        "assert 'alembic' not in sys.modules"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, url], check=False, timeout=60).returncode == 0
    )

    with create_engine(url).connect() as connection:
        assert (
            ScriptDirectory.from_config(migration_config(connection)).get_current_head() == SCHEMA
        )


def test_opening_again_changes_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/store.db"
    first = open_store(url)
    first.add_endpoint("onnxserve", new_endpoint("flights", "m"))
    first.close()

    second = open_store(url)

    assert [endpoint.name for endpoint in second.endpoints()] == ["flights"]
    second.close()


def test_a_store_shares_a_database_with_mlflow(tmp_path):
    url = f"sqlite:///{tmp_path}/mlflow.db"
    with create_engine(url).begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('mlflows-own')"))
        connection.execute(text("CREATE TABLE endpoints (endpoint_id VARCHAR(36))"))

    store = open_store(url)

    assert store.endpoints() == []
    store.close()


@pytest.mark.parametrize("schema", ["9999", "0014"])
def test_a_store_whose_schema_is_not_known_is_left_alone(tmp_path, schema):
    """A newer onnxserve, or a build before the first release, has created the store."""
    url = f"sqlite:///{tmp_path}/store.db"
    open_store(url).close()
    stamp = text(f"UPDATE {VERSION_TABLE} SET version_num = '{schema}'")
    with create_engine(url).begin() as connection:
        connection.execute(stamp)

    with pytest.raises(
        StoreUnavailable, match=f"{tmp_path}/store.db .*{schema}.*`onnxserve migrate`"
    ) as caught:
        open_store(url)

    assert "\n" not in caught.value.message


def test_invalid_database_file_is_a_one_line_error(tmp_path):
    (tmp_path / "store.db").write_bytes(
        b"no database at all, but long enough to have a header" * 20
    )

    with pytest.raises(StoreUnavailable) as caught:
        open_store(f"sqlite:///{tmp_path}/store.db")

    assert mentions(caught.value.message, "not a database")
    assert "\n" not in caught.value.message


def test_a_store_whose_connections_all_hang_is_unavailable(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/store.db", pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    store = Store(engine, utc_now)

    with store.transaction() as hanging:
        hanging.connection()
        with pytest.raises(StoreUnavailable, match="connection timed out"):
            store.names()


def test_folder_that_cannot_be_created_names_the_settings(tmp_path):
    (tmp_path / "file").touch()

    with refused(StoreUnavailable, f"{tmp_path}/file", "ONNXSERVE_HOME", "ONNXSERVE_STORE_URI"):
        open_store(f"sqlite:///{tmp_path}/file/store.db")


def test_database_that_cannot_be_opened_names_the_setting(tmp_path):
    with refused(StoreUnavailable, "unable to open", "ONNXSERVE_HOME"):
        open_store(f"sqlite:///{tmp_path}")


def test_read_only_folder_error_names_the_setting():
    denied = sqlite3.OperationalError("attempt to write a readonly database")
    denied.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY  # The home belongs to another user.
    assert "ONNXSERVE_HOME" in store_unavailable(make_url("sqlite:///store.db"), denied).message


def test_an_unreachable_database_is_named_without_its_password():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StoreUnavailable) as caught:
            open_store(f"postgresql+psycopg://onnx:s3cret@127.0.0.1:{port}/db?application_name=x")

    assert mentions(caught.value.message, f"postgresql+psycopg://onnx:***@127.0.0.1:{port}/db")
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.postgresql
def test_a_wrong_password_is_not_shown(postgresql_url):
    with pytest.raises(StoreUnavailable) as caught:
        open_store(postgresql_url.replace("s3cr", "wr0ng"))

    assert "password authentication failed" in caught.value.message
    assert "wr0ng" not in caught.value.message


@pytest.mark.postgresql
def test_a_store_that_goes_away_while_it_is_open_is_an_error_of_ours(postgresql_url):
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
def test_nothing_of_a_client_stays_in_a_connection_that_pgbouncer_gives_to_another(postgresql_url):
    connections: list[Any] = []
    event.listen(Engine, "connect", lambda connection, _: connections.append(connection), once=True)
    store = open_store(postgresql_url)
    for _ in range(10):  # psycopg prepares a statement at its sixth execution.
        store.endpoints()
    assert connections[0].execute("SELECT statement FROM pg_prepared_statements").fetchall() == []
    store.close()


@pytest.mark.postgresql
def test_a_connection_to_a_machine_that_has_vanished_is_given_up_after_seconds(postgresql_url):
    """Only a firewall could simulate a failed machine here, so read the timeout from
    the socket.
    """
    waits: list[int] = []

    def connected(connection, _record):
        with socket.socket(fileno=os.dup(connection.fileno())) as opened:
            waits.append(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    event.listen(Engine, "connect", connected)
    try:
        open_store(postgresql_url).close()
    finally:
        event.remove(Engine, "connect", connected)

    assert waits == [20_000]


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
def test_a_uri_that_cannot_be_is_a_configuration_error_without_its_password(url, said):
    with pytest.raises(InvalidConfig, match=said) as caught:
        open_store(url)

    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("held", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_new_store_that_somebody_else_is_just_making_is_waited_for(tmp_path, held):
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
