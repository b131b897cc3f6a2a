"""Requests that a side process refuses, and exceptions of other people's code as a client may see them."""

import re
from typing import Literal

_MAX_CHARACTERS = 500
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@+~-]+){2,}")
_TAILS = ("\nInput: ", " IMPORTANT: The MLflow Model scoring protocol")
"""The beginnings of what MLflow's messages append: the body again, and advice about version 1 of its protocol."""


RefusalKind = Literal["request", "schema", "media type", "model", "time"]
"""The part at fault: the body, its data, its type, the model, or the time that it takes."""


class RequestRefused(Exception):
    """A request is not computed; `what` is at fault."""

    def __init__(self, what: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.what = what
        self.message = message


def one_line(error: BaseException) -> str:
    """Return the class and the text of an exception in one line."""
    text = clean_message(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clean_message(text: str) -> str:
    """Return a message of MLflow or of a model in one short line without paths."""
    if text.startswith("Failed to predict data"):
        text = text.partition("\nError: ")[2] or text
    for tail in _TAILS:
        text = text.partition(tail)[0]
    text = " ".join(_PATH.sub("…", text[: 4 * _MAX_CHARACTERS]).split())
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
