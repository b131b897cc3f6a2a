"""The registry: it resolves a model URI to one version, and manages the version's files, its tags and MLflow runs.

Functions import MLflow, spec, store and numpy inside the function, because the command line and the workers import this
room and must start fast. Each function raises `RegistryUnavailable` if MLflow does not answer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
