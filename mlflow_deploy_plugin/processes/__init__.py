"""Child processes: started in a group of their own, ended as a whole, and described in words when they have ended."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
