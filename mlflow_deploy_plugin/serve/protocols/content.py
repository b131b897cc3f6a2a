"""Content types, JSON decoding and encoding, and outputs as rows, for all protocols
over HTTP.
"""

import base64
import codecs
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import orjson

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch, UnsupportedMediaType
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.values import short_repr

JSON = "application/json"
CSV = "text/csv"
EVENTS = "text/event-stream"

MOST_CONTAINERS = 1_000_000
"""The maximum number of arrays and objects per document, because `[]` and `{}` take 56
to 232 bytes of memory.
"""
_SMALL_BYTES = len(b"[]") * MOST_CONTAINERS
"""The largest body whose brackets need not be counted: each array or object takes at
least two bytes of a body.
"""
_PIECE_BYTES = 128 * 1024
"""The size of the pieces of a body for counting brackets; numpy's arrays then fit into
the processor's cache.
"""
DEEPEST = 500
"""The maximum nesting depth, which Python's `json` can read and write; orjson and
simdjson support 1,024 levels.
"""
_CONTAINERS = (list, dict)
_TOO_DEEP = f"the JSON is nested more than {DEEPEST} levels deep"


@lru_cache(maxsize=256)
def media_type(content_type: str | None, accepted: tuple[str, ...]) -> str:
    """Return the media type of a `Content-Type` header in lower case; it is an element
    of `accepted`.

    Raises UnsupportedMediaType if the header is missing, has another type, or has a
    charset other than UTF-8.
    """
    expected = " or ".join(accepted)
    if not content_type:
        raise UnsupportedMediaType(
            f"the request has no Content-Type; this route accepts {expected}",
        )
    name, *parameters = (part.strip() for part in content_type.split(";"))
    if name.lower() not in accepted:
        raise UnsupportedMediaType(
            f"this route does not accept the Content-Type {name[:100]!r}; it accepts {expected}",
        )
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset" and value.strip(' "').lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType(
                f"the charset {value.strip()[:40]!r} is not supported; send UTF-8",
            )
    return name.lower()


def media_name(content_type: str | None) -> str:
    """Return the media type of a `Content-Type` header, in lower case without
    parameters; empty if it is missing.
    """
    if content_type:
        return content_type.partition(";")[0].strip().lower()
    return ""


def load_json(body: bytes, subject: str = "the body is ", takes_nan: bool = True) -> Any:
    """Return the document in `body`. orjson bounds the depth to 1,024 levels. Error
    messages begin with `subject`.

    NaN and Infinity are accepted unless `takes_nan` is False, because MLflow's clients
    and examples write them, and so is a byte order mark. Raises MemoryError, and
    InvalidRequest if the body is not JSON or has more than `MOST_CONTAINERS` arrays and
    objects.
    """
    if not body:
        raise InvalidRequest(f"{subject}empty; a JSON document is expected")
    if len(body) > _SMALL_BYTES:
        check_containers(body)
    try:
        return orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):
            raise MemoryError from None
        refusal = InvalidRequest(f"{subject}not valid JSON: {error}")
    if not takes_nan or (b"NaN" not in body and b"Infinity" not in body):
        raise refusal
    try:
        document = json.loads(body, parse_int=_parse_int)
        check_depth(document)
        if b"\\u" in body:  # Encoding raises a ValueError for a lone surrogate.
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except RecursionError:
        raise InvalidRequest(_TOO_DEEP) from None
    except ValueError:
        raise refusal from None


def check_depth(document: object) -> None:
    """Raise InvalidRequest if the document is nested more than `DEEPEST` levels deep.

    The depth that Python's `json` supports depends on the interpreter, the thread's
    stack and the caller.
    """
    level = [document] if isinstance(document, _CONTAINERS) else []
    for _ in range(DEEPEST):
        elements = [part.values() if isinstance(part, dict) else part for part in level]
        values = chain.from_iterable(elements)
        level = [value for value in values if isinstance(value, _CONTAINERS)]
        if not level:
            return
    raise InvalidRequest(_TOO_DEEP)


def check_containers(body: bytes) -> int:
    """Return the number of opening square brackets in a JSON text, including brackets
    within its strings.

    Raises InvalidRequest above `MOST_CONTAINERS` arrays and objects, which would take
    hundreds of megabytes of memory.
    """
    data = np.frombuffer(body, np.uint8)
    pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    arrays = sum(int(np.count_nonzero(piece == ord("["))) for piece in pieces)
    if len(body) <= _SMALL_BYTES:
        return arrays
    opened = arrays + sum(int(np.count_nonzero(piece == ord("{"))) for piece in pieces)
    if opened > MOST_CONTAINERS:
        raise InvalidRequest(
            f"the JSON has {opened} brackets that open arrays and objects; at most "
            f"{MOST_CONTAINERS} are allowed: send fewer rows, or send them as Arrow",
        )
    return arrays


def _parse_int(digits: str) -> int | float:
    """Return an integer; a float if 64 bits cannot represent it, as orjson does."""
    number = int(digits)
    if -(2**63) <= number < 2**64:
        return number
    return float(digits)


def load_json_object(content_type: str | None, body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`.

    Raises UnsupportedMediaType for another content type, and InvalidRequest if it is
    not a JSON object.
    """
    media_type(content_type, (JSON,))
    return json_object(body)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`, whose content type is known to be JSON. Raises
    InvalidRequest if it is not a JSON object.
    """
    document = load_json(body)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body is a JSON {json_type(document)}; an object is expected")
    return document


def dump_json(document: object) -> bytes:
    """Return JSON with arrays as nested lists. NaN and infinity, which JSON cannot
    represent, become null.
    """
    return orjson.dumps(
        document,
        default=_plain_value,
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS,
    )


def base64_text(value: Any, label: str) -> str:
    """Return the text that a JSON value contains in base64. Raises InvalidRequest if it
    is not base64 or not UTF-8.
    """
    try:
        return base64.b64decode(value, validate=True).decode()
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"{label} is {short_repr(value)}; UTF-8 text in base64 is expected",
        ) from None


def json_type(value: object) -> str:
    """Return JSON's name for the type of a value that was read from JSON."""
    if value is None:
        return "null"
    names: dict[type, str] = {
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
    }
    return names.get(type(value), "object")


def _plain_value(value: object) -> object:
    """Convert strings, non-contiguous arrays and ONNX Runtime's 64-bit integers
    (numpy.longlong) for orjson.

    32-bit floats remain 32-bit, so that they have few digits.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not value.flags.c_contiguous:
        return np.ascontiguousarray(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def check_row_aligned(outputs: Mapping[str, Array]) -> None:
    """Raise SchemaMismatch unless each output has one value, or array of values, per
    row.
    """
    lengths = {getattr(array, "shape", ())[:1] for array in outputs.values()}
    if len(lengths) != 1 or () in lengths:
        raise SchemaMismatch(
            "the outputs of this model do not have one value per row; request JSON at /invocations",
        )


def rows_of(outputs: Mapping[str, Array]) -> list[dict[str, object]]:
    """Return one mapping per row, from output names to values. Raises SchemaMismatch
    unless each output has one value, or array of values, per row.
    """
    check_row_aligned(outputs)
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
