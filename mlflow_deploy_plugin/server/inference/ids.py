"""Identifiers that never repeat: 128 random bits in hexadecimal, like `uuid4`."""

import os

_BATCH = 256
_ready: list[str] = []


def new_id() -> str:
    """Return a new identifier. Random bits come from the operating system for many at once: the call is what costs."""
    while True:
        try:
            return _ready.pop()
        except IndexError:
            digits = os.urandom(16 * _BATCH).hex()
            _ready.extend(digits[start : start + 32] for start in range(0, len(digits), 32))


os.register_at_fork(after_in_child=_ready.clear)  # else both processes would return the same ones
