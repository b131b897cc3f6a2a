"""A result that is not there, with the reason: the `Refused` half of `Figure | Refused`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A function returns it instead of a value if there is none and that is an ordinary outcome, not an error.

    Attributes:
        reason: why there is no value, in a sentence for people. Nothing is ever decided by its text.
    """

    reason: str
