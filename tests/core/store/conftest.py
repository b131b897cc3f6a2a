"""The databases of the tests of the store."""

import importlib
import shutil

import pytest
from sqlalchemy import create_engine, delete

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import (
    AuditLeafRow,
    AuditRow,
    AuditTreeRow,
)
from tests.support.services.postgresql import postgresql_server
from tests.support.tlog import FOLDER


@pytest.fixture(scope="session")
def postgresql_url():
    with postgresql_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request, tmp_path):
    """Return the URL of an SQLite file that does not exist yet, and the URL of the
    PostgreSQL database that all tests share.
    """
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path}/deep/store.db"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The SQLite file of an empty store. Tests copy it, because the migrations take
    longer than most tests.
    """
    file = tmp_path_factory.mktemp("empty") / "store.db"
    open_store(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def store_url(database_url, empty_store, tmp_path):
    if database_url.startswith("sqlite"):
        (tmp_path / "deep").mkdir()
        shutil.copy(empty_store, tmp_path / "deep" / "store.db")
    return database_url


@pytest.fixture
def name(request):
    """Return an endpoint name that no other test uses, because the PostgreSQL database
    is shared.
    """
    return f"e{abs(hash(request.node.name)) % 10**12}"


@pytest.fixture
def empty_trail(store_url):
    """Remove the audit events of other tests, which share the PostgreSQL database."""
    open_store(store_url).close()
    with create_engine(store_url).begin() as connection:
        for table in (AuditRow, AuditLeafRow, AuditTreeRow):
            connection.execute(delete(table))


@pytest.fixture(scope="session")
def tlog():
    """Return the package aics-tlog, another implementation of C2SP's logs."""
    if not (FOLDER / "aics_tlog").is_dir():
        pytest.skip(f"no aics-tlog in {FOLDER}: make install")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("aics_tlog")
