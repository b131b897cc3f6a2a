"""Build the parts of messages: a text of others in one line, a list of names, and the known name that is meant."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice

_LEAST_LIKENESS = 0.5
"""The least `difflib.SequenceMatcher.ratio` of a suggestion; `port` is just near enough to `server.port`."""
_MOST_COMPARED, _MOST_CHARACTERS = 2000, 100
"""Limits for the names that are compared: each takes some 10 µs, and they come from a client."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # of Keras
_MOST_UNKNOWN = 5
_MOST_LISTED = 10


def one_line(text: object, most: int | None = None) -> str:
    """Return a text, or an error's (without one, its class), in one line of at most `most` characters."""
    line = " ".join(_COLOUR.sub("", str(text)).split())[:most]
    return line or (type(text).__name__ if isinstance(text, BaseException) else "")


def without_row_number(message: str) -> str:
    """Return a message about a row that was sent alone without its number, which is not the one in its file."""
    return message.replace(", row 0", "", 1).replace(" in row 0", "", 1).replace("row 0 ", "the row ", 1)


def close_matches(name: str, known: Iterable[str], most: int) -> list[str]:
    """Return the known names that are near, the nearest first. Only the first few thousand are compared."""
    names = [one for one in islice(known, _MOST_COMPARED) if len(one) <= _MOST_CHARACTERS]
    return difflib.get_close_matches(name[:_MOST_CHARACTERS], names, n=most, cutoff=_LEAST_LIKENESS)


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """Return the nearest known name, or None if none is near."""
    return next(iter(close_matches(name, known, 1)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a message: the nearest known name, or `otherwise` if none is near."""
    found = closest_match(name, known)
    hint = f"did you mean {found!r}?" if found else otherwise
    return f"; {hint}" if hint else ""


def hint_for_missing(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """Return the end of a message about missing names: the unknown name that came instead, or an empty text."""
    wanted, given = list(missing), list(islice(unknown, _MOST_UNKNOWN))
    for name in given:
        if found := closest_match(name, wanted):
            return f"; {name[:_MOST_CHARACTERS]!r} is not known: did you mean {found!r}?"
    return f"; {given[0][:_MOST_CHARACTERS]!r} is not known" if given else ""


def join_names(names: Iterable[str], name: str = "") -> str:
    """Return at most ten names in a line. If some are left out, the one nearest to `name` stands first."""
    known = list(names)
    if len(known) <= _MOST_LISTED:
        return ", ".join(known)
    first = closest_match(name, known) if name else None
    shown = known[:_MOST_LISTED] if first is None else list(dict.fromkeys([first, *known]))[:_MOST_LISTED]
    return f"{', '.join(shown)} and {len(known) - len(shown)} more"
