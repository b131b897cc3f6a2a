"""Which name was probably meant by one that is not known."""

import difflib
from collections.abc import Iterable

_LEAST_LIKENESS = 0.5
"""Of `difflib.SequenceMatcher.ratio`; `port` is just near enough to `server.port`."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message: the known name that is nearest; where none is near, what `otherwise` says, if anything."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=_LEAST_LIKENESS)
    hint = f"did you mean {nearest[0]!r}?" if nearest else otherwise
    return f"; {hint}" if hint else ""
