"""A request that is refused, and how an exception of strangers is told to a client: in one line, without paths."""

import re
from typing import Literal

_LONGEST = 500
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@+~-]+){2,}")
_TAILS = ("\nInput: ", " IMPORTANT: The MLflow Model scoring protocol")
"""Where MLflow's messages begin to repeat the body, or to tell of its version 1."""


RefusalKind = Literal["request", "schema", "media type", "model", "time"]


class RequestRefused(Exception):
    """A request is not computed.

    `what` says whether its body, data or type is at fault, whether the model refuses, or whether its time was up.
    """

    def __init__(self, what: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.what = what
        self.message = message


def one_line(error: BaseException) -> str:
    """The class and the text of an exception."""
    text = clean_message(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clean_message(text: str) -> str:
    """A message of MLflow's, or of a model, as a client may see it."""
    if text.startswith("Failed to predict data"):
        text = text.partition("\nError: ")[2] or text
    for tail in _TAILS:
        text = text.partition(tail)[0]
    text = " ".join(_PATH.sub("…", text[: 4 * _LONGEST]).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
