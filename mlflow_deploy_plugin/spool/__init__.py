"""The spool: captured requests and feedback as bytes on disk, written by the workers and read by the agent."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
