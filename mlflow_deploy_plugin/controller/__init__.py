"""The controller runs rollouts, monitors and retrainings over time, under leases in the store.

Each name is imported at its first use, so that a command loads only the modules that it needs. A function that reads
the store raises `StoreUnavailable` if the store does not answer, and a query to MLflow raises `RegistryUnavailable`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
