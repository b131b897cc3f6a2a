"""A PostgreSQL server for the tests of the store."""

from collections.abc import Iterator

import pytest

from tests.support.services.postgresql import postgresql_server


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    with postgresql_server() as url:
        yield url
