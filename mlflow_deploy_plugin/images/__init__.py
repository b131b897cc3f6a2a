"""Images that serve one model: the server's image, and on it a layer with the model or the name of what it follows.

A name is imported from its module on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
