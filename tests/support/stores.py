"""The store that the settings of this process name."""

from contextlib import closing, contextmanager

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store


@contextmanager
def own_store(*arguments, **options):
    """Open the store with these arguments of `open_store`, and close it."""
    with closing(open_store(load_settings().store_url, *arguments, **options)) as store:
        yield store
