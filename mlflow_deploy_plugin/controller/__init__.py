"""The controller runs rollouts, monitors and retrainings over time, under leases in the store.

A name is imported from its module on first use: a command that needs one part must not wait for the imports of others.
What reads the store raises `StoreUnavailable` if that does not answer, and what asks MLflow `RegistryUnavailable`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
