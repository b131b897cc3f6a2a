"""The names of people, as logins report them: the usable names, and the spellings that
belong to one person; the spellings that a database may take for one name; and the act
that a person performs in this process.
"""

import unicodedata
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache

MOST_CHARACTERS = 255
"""The length of an actor's name in the tables. A longer name would be stored without
its end.
"""
ANONYMOUS = "anonymous@"
CURRENT_ACT = ContextVar("CURRENT_ACT", default="")
"""The id of the promotion or rollback whose steps this process performs; its events
have it.
"""
_IGNORABLE_RANGES = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2065, 0x2065),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),
)
"""The ranges of Unicode's Default_Ignorable_Code_Point that have another general
category than Cf.
"""
_CONTROL = ("Cc", "Cs")
"""Control characters, and halves of surrogate pairs, which UTF-8 cannot store."""


_BLANK = "\u2800"
"""The braille pattern without dots, which looks like a space, but is not white space in
Unicode.
"""


def person_key(name: str) -> str:
    """Return the form of a name that is equal for all spellings of the name that look
    the same or differ only in case.

    This is Unicode's compatibility caseless matching (definition D146) without
    ignorable and control characters, without outer spaces, and with one space in place
    of each run of spaces of any kind.
    """
    visible = ""
    for character in name.replace(_BLANK, " "):
        category = unicodedata.category(character)
        if category == "Cf" or (category in _CONTROL and not character.isspace()):
            continue
        point = ord(character)
        if not any(first <= point <= last for first, last in _IGNORABLE_RANGES):
            visible += character
    folded = unicodedata.normalize("NFD", visible).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


@lru_cache(maxsize=4096)
def name_key(name: str) -> str:
    """Return the form of a name of a model, a place or a tag that is equal for all
    spellings that a database may compare as equal.

    This is `person_key` without accents, strokes and other marks, as in the collations
    `utf8mb4_0900_ai_ci` of MySQL and `Latin1_General_CI_AI` of SQL Server.
    """
    letters = ""
    for character in unicodedata.normalize("NFKD", person_key(name)):
        base = unicodedata.name(character, "").partition(" WITH ")[0]
        with suppress(KeyError):  # Not every character has a name.
            character = unicodedata.lookup(base)
        if not unicodedata.combining(character):
            letters += character
    return letters


def name_refusal(name: str) -> str:
    """Return why the name is not usable, as a clause; empty if it is usable."""
    if len(name) > MOST_CHARACTERS:
        return (
            f"the caller's name has {len(name)} characters; at most {MOST_CHARACTERS} are allowed"
        )
    if any(unicodedata.category(character) in _CONTROL for character in name):
        return f"the caller's name {name!a} contains a control character"
    key = person_key(name)
    if not key:
        return f"the caller's name {name!a} has no visible character"
    if key.startswith(ANONYMOUS):
        return f"the caller's name {name!a} stands for a caller without a login"
    return ""
