"""Which name was probably meant by one that is not known."""

import difflib
from collections.abc import Iterable
from itertools import islice

_LEAST_LIKENESS = 0.5
"""Of `difflib.SequenceMatcher.ratio`; `port` is just near enough to `server.port`."""
_MOST_COMPARED, _MOST_CHARACTERS = 2000, 100
"""Names, and how much of each: comparing takes some 10 µs a name, and what is compared comes from a caller."""
_MOST_UNKNOWN = 5
_MOST_LISTED = 10


def close_matches(name: str, known: Iterable[str], most: int) -> list[str]:
    """The known names that are near, the nearest first. Only the first few thousand are looked at."""
    names = [one for one in islice(known, _MOST_COMPARED) if len(one) <= _MOST_CHARACTERS]
    return difflib.get_close_matches(name[:_MOST_CHARACTERS], names, n=most, cutoff=_LEAST_LIKENESS)


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """The known name that is nearest; None where none is near."""
    return next(iter(close_matches(name, known, 1)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message: the known name that is nearest; where none is near, what `otherwise` says, if anything."""
    found = closest_match(name, known)
    hint = f"did you mean {found!r}?" if found else otherwise
    return f"; {hint}" if hint else ""


def hint_for_missing(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """The end of a message about names that are missing: which unknown one came instead; empty where none did."""
    wanted, given = list(missing), list(islice(unknown, _MOST_UNKNOWN))
    for name in given:
        if found := closest_match(name, wanted):
            return f"; {name[:_MOST_CHARACTERS]!r} is not known: did you mean {found!r}?"
    return f"; {given[0][:_MOST_CHARACTERS]!r} is not known" if given else ""


def join_names(names: Iterable[str], name: str = "") -> str:
    """Names in a line, at most ten of them; where some are cut off, the one nearest to `name` stands first."""
    known = list(names)
    if len(known) <= _MOST_LISTED:
        return ", ".join(known)
    first = closest_match(name, known) if name else None
    shown = known[:_MOST_LISTED] if first is None else list(dict.fromkeys([first, *known]))[:_MOST_LISTED]
    return f"{', '.join(shown)} and {len(known) - len(shown)} more"
