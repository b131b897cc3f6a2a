"""Whom a name that nobody has was probably meant for."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What is added to the message: the known name that is nearest; empty where none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {nearest[0]!r}?" if nearest else ""
