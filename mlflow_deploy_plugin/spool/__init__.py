"""The spool: captured requests and feedback in files on disk, which workers write and the agent reads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
