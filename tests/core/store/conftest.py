"""The databases of the tests of the store."""

import pytest

from tests.support.services.postgresql import postgresql_server


@pytest.fixture(scope="session")
def postgresql_url():
    with postgresql_server() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def store_url(request, tmp_path):
    """Return the URL of the test's SQLite file, and the URL of the PostgreSQL database
    that all tests share.
    """
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path}/deep/store.db"


@pytest.fixture
def name(request):
    """Return an endpoint name that no other test uses, because the PostgreSQL database
    is shared.
    """
    return f"e{abs(hash(request.node.name)) % 10**12}"
