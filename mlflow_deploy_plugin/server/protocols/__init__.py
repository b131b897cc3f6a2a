"""Bytes and headers ↔ named arrays, one module a protocol, and one table of them (`protocol_table.py`)."""
