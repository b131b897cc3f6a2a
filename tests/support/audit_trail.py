"""The audit trail as MLflow's server writes it."""

from contextlib import contextmanager

from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.audit_seal import seal
from mlflow_deploy_plugin.core.store.database import open_store, utc_now


@contextmanager
def store_of_server(url, folder, clock=utc_now):
    """Open a store with the key in the folder, and seal the earlier events."""
    store = open_store(url, clock, keys=read_key_file(folder / "audit.key"))
    seal(store)
    yield store
    store.close()
