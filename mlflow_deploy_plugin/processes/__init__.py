"""Child processes: each leads a process group, is stopped with all its descendants, and reports its end."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
