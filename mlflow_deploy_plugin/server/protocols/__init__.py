"""Bytes and headers ↔ named arrays, one module a protocol, and one table of them (`protocol_table.py`).

Other rooms use the protocols that `__init__.pyi` names, as `server.protocols`; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
