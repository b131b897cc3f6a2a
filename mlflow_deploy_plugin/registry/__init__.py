"""The registry: a model URI → one version, its files, its tags, and MLflow runs.

Every function reaches MLflow when it is called, never at import: the command line and the workers import this room, and
must start fast. So spec, store and numpy are imported for their types only, or where they are needed. Each of them
raises `RegistryUnavailable` if MLflow does not answer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
