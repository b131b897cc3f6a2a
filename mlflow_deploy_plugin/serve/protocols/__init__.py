"""Convert bytes and headers to named arrays and back. Each protocol is a module.

The modules do not depend on the served models: `serve/inference/protocol_table.py` binds protocols to variants.
"""
