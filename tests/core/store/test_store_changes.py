"""The counters of changes in MLflow's registry."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from sqlalchemy import delete

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.tables import RegistryChangeRow


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    with opened.transaction() as session:
        session.execute(delete(RegistryChangeRow))
    yield opened
    opened.close()


def test_concurrent_counts_lose_no_change(store, store_url):
    other_stores = [open_store(store_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(other.count_change, model)
            for other, model in product(other_stores, "XY" * 10)
        ]
    assert [future.exception() for future in futures] == [None] * 80
    assert store.recent_changes() == {"X": 40, "Y": 40}
    for other in other_stores:
        other.close()


def test_only_recent_changes_are_read(store):
    store.count_change("old")
    store.count_change("new")
    with store.transaction() as session:
        row = session.get(RegistryChangeRow, "old")
        row.changed_at = row.changed_at.replace(year=2020)
    assert store.recent_changes() == {"new": 1}
