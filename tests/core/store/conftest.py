"""The databases of the tests of the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.postgresql import postgresql_server


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ]
)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of the test's SQLite file, and the URL of the PostgreSQL database
    that all tests share.
    """
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql_url"))
    return f"sqlite:///{tmp_path}/deep/store.db"
