"""Values as texts, the same ones wherever two of them are to be found equal: labels, keys, masks."""

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np

_TRUTH = {"true": "1", "false": "0"}


def as_key(value: Any) -> str | None:
    """What a key's value is compared as: `as_text`, of true and false in any spelling 1 and 0.

    A column of booleans stands in the log as booleans or as the numbers that the graph takes; a CSV file says True.
    """
    text = as_text(value)
    return _TRUTH.get(text.lower(), text) if text is not None and len(text) <= len("false") else text


def as_text(value: Any) -> str | None:
    """A label's or a key's value as text: 1 for 1.0, true for True, 0.1 for a float32's 0.1; None for NaN and None."""
    if value is None:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, np.generic):
        value = value.item() if value.dtype != np.float32 else float(str(value))  # 0.1, not 0.10000000149011612
        return as_text(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value.is_finite() else as_text(float(value))
    return str(value)
