"""Build the parts of messages: external text on one line, lists of names, and
suggestions for misspelt names.
"""

import difflib
import re
from collections.abc import Container, Iterable
from itertools import islice

_LEAST_LIKENESS = 0.65
"""The lowest `difflib.SequenceMatcher.ratio` of a suggestion. That of `lsit` and `list`
is 0.75, of `bb` and `b` 0.67, of `silence` and `size` 0.55.
"""
_MOST_COMPARED = 2000
_MOST_CHARACTERS = 100
"""The maximum number and length of compared names: clients choose the names, and each
comparison takes 10 µs.
"""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # The messages of Keras contain terminal colours.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MOST_UNKNOWN = 5
_MOST_LISTED = 10
REPEATED_HEADER = "X-Onnxserve-Repeated"
"""The header of a request with rows of a refused request. If these rows are refused,
this is not captured again.
"""


def one_line(text: object, most: int | None = None) -> str:
    """Return a text on one line of at most `most` characters. For an error without a
    text, return its class name.
    """
    line = " ".join(_COLOUR.sub("", str(text)).split())[:most]
    if not line and isinstance(text, BaseException):
        return type(text).__name__
    return line


def without_row_number(message: str) -> str:
    """Remove the row number from a message about a single row, because the row has
    another number in its file.
    """
    return (
        message.replace(", row 0", "", 1)
        .replace(" in row 0", "", 1)
        .replace("row 0 ", "the row ", 1)
    )


def close_matches(
    name: str,
    names: Iterable[str],
    most: int,
) -> list[str]:
    """Return the most similar of the `names`, the best match first. Upper and lower
    case are equal, and `port` is similar to `server.port`. Only the first 2,000 names
    are compared.
    """
    by_form: dict[str, str] = {}
    for text in islice(names, _MOST_COMPARED):
        if len(text) <= _MOST_CHARACTERS:
            form = text.lower()
            by_form.setdefault(form.rpartition(".")[2], text)
            by_form[form] = text
    short = name[:_MOST_CHARACTERS].lower()
    forms = difflib.get_close_matches(short, by_form, n=most, cutoff=_LEAST_LIKENESS)
    return [by_form[form] for form in forms]


def closest_match(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of the `names`, or None if no name is similar."""
    return next(iter(close_matches(name, names, 1)), None)


def did_you_mean(
    name: str,
    names: Iterable[str],
    otherwise: str = "",
) -> str:
    """Return the end of a message: a suggestion of the most similar of the `names`, or
    `otherwise` without such a name.
    """
    match = closest_match(name, names)
    hint = f"did you mean {match!r}?" if match else otherwise
    return f"; {hint}" if hint else ""


def hint_for_missing(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """Return the end of a message about missing names: an unknown name that may be
    misspelt, or an empty text.
    """
    missing_names = list(missing)
    unknown_names = list(islice(unknown, _MOST_UNKNOWN))
    for name in unknown_names:
        if match := closest_match(name, missing_names):
            return f"; {name[:_MOST_CHARACTERS]!r} is not known: did you mean {match!r}?"
    if unknown_names:
        return f"; {unknown_names[0][:_MOST_CHARACTERS]!r} is not known"
    return ""


def wrong_separator(header: Iterable[str], columns: Container[str]) -> str:
    """Return the message for a CSV header that was read as one name although it
    separates the expected `columns` differently.

    Return an empty text for any other header.
    """
    names = list(islice(header, 2))
    if len(names) != 1:
        return ""
    for mark, plural in _SEPARATORS.items():
        parts = [part.strip(' "') for part in names[0].split(mark)]
        if len(parts) > 1 and any(part in columns for part in parts):
            return f"the CSV separates its columns with {plural}: separate them with commas"
    return ""


def join_names(names: Iterable[str], name: str = "") -> str:
    """Return at most ten names on one line. If some names are left out, the name most
    similar to `name` is first.
    """
    all_names = list(names)
    if len(all_names) <= _MOST_LISTED:
        return ", ".join(all_names)
    listed = [*dict.fromkeys(close_matches(name, all_names, 1) + all_names)][:_MOST_LISTED]
    return f"{', '.join(listed)} and {len(all_names) - len(listed)} more"


def format_time(iso: str) -> str:
    """Return the UTC time to the minute, `2013-06-29 14:00`, or `2013-06-29` at
    midnight.
    """
    return iso[:16].replace("T", " ").removesuffix(" 00:00")
