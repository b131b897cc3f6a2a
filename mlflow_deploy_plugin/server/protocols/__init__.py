"""Bytes and headers ↔ named arrays, one module a protocol; none sees a socket, none sees a session."""
