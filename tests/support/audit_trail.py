"""The audit trail as MLflow's server writes it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import seal
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.core.store.store import Store


@contextmanager
def store_of_server(
    url: str, folder: Path, clock: Callable[[], datetime] = utc_now
) -> Iterator[Store]:
    """Open a store with the key in the folder, and seal the earlier events."""
    store = open_store(url, clock, keys=read_key_file(folder / "audit.key"))
    seal(store)
    yield store
    store.close()
