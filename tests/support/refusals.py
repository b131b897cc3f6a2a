"""Checks that a message contains certain names,
so that a test does not pin a sentence.
"""

import re
from typing import TypeVar

import pytest

E = TypeVar("E", bound=BaseException)


def mentions(text: str, *names: str) -> bool:
    """Return True if a text contains each name as a separate word."""
    return all(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


def refused(error: type[E], *names: str, code: str = "") -> pytest.RaisesExc[E]:
    """Expect an error of a class, each name in its message, and its `error_code` if the
    class has several codes.
    """

    def check(raised: E) -> bool:
        assert mentions(str(raised), *names), f"{names} in {raised}"
        assert getattr(raised, "error_code", "") == code or not code
        return True

    return pytest.raises(error, check=check)
