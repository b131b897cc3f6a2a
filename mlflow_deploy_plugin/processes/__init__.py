"""Child processes, which run in their own process groups, are stopped with their descendants, and report their end."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
