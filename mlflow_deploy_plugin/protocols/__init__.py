"""Bytes and headers ↔ named arrays, one module per protocol, imported on first use.

The room does not know the served models: `server/inference/protocol_table.py` binds protocols to variants.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
