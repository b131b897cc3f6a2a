"""Bytes and headers ↔ named arrays, one module a protocol.

The room does not know the served models: `server/inference/protocol_table.py` binds each protocol to the variant that
answers. A module is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
