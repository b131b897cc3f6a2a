"""The controller runs rollouts, monitors and retrainings over time, under leases in the store.

Each name is imported at its first use, because a command that needs one part must not wait for the other imports.
Readers of the store raise `StoreUnavailable` if it does not answer; queries to MLflow raise `RegistryUnavailable`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
