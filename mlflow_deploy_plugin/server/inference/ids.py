"""Identifiers that never repeat: 128 random bits in hexadecimal, as `uuid4` has them."""

import os

_AT_ONCE = 256
_ready: list[str] = []


def new_id() -> str:
    """The operating system is asked for many at once: for one, the question takes longer than everything else."""
    while True:
        try:
            return _ready.pop()
        except IndexError:
            digits = os.urandom(16 * _AT_ONCE).hex()
            _ready.extend(digits[start : start + 32] for start in range(0, len(digits), 32))


os.register_at_fork(after_in_child=_ready.clear)  # or both processes would give the same ones
