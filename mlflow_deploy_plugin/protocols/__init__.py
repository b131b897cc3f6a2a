"""Convert bytes and headers to named arrays and back. Each protocol is a module that is imported on first use.

The modules do not depend on the served models: `server/inference/protocol_table.py` binds protocols to variants.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
