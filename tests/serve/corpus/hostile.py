"""Bodies whose cost must not grow faster than their size: patterns that are repeated up
to any size, by language.

Most of these bodies are refused. The tests measure the cost and ignore the response.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tests.serve.corpus.bodies import FIELDS as FIELDS
from tests.serve.corpus.routes import RECORD, dump
from tests.support.bodies import arrow_stream

Fill = Callable[[int], bytes]
"""The approximate size of the bodies in bytes."""


def _numbered(piece, before=b"[", after=b"]", by=b","):
    """Return numbered pieces up to a size, between a beginning and an end."""
    length = len(piece(10_000)) + len(by)
    return lambda size: before + by.join(map(piece, range(max(1, size // length)))) + after


def _repeated(piece, before=b"[", after=b"]", by=b","):
    length = len(piece) + len(by)
    return lambda size: before + by.join([piece] * max(1, size // length)) + after


def _keys(before=b"{", after=b"}", value=b"1"):
    return _numbered(lambda number: b'"k%d":%s' % (number, value), before, after)


def _lines(piece, before=b"", after=b""):
    return _repeated(piece, before, after, b"\n")


_RECORD = dump(RECORD)
VALUES = {
    "keys": _keys(),
    "one key again and again": _repeated(b'"k":[1]', b"{", b"}"),
    "numbers": _repeated(b"1.5"),
    "texts": _repeated(b'"a"'),
    "empty objects": _repeated(b"{}"),
    "records and a wrong one": _repeated(_RECORD, after=b',{"carrier":5}]'),
    "records with keys of their own": _numbered(lambda n: _RECORD[:-1] + b',"k%d":1}' % n),
    "pictures and a ragged one": _repeated(b"[[1,2],[3,4]]", after=b",[[1,2],[3]]]"),
    "depth after depth": _repeated(b"[" * 900 + b"]" * 900),
    "a text": lambda size: b'"%s"' % (b"a" * size),
    "escapes": lambda size: b'["%s"]' % (b"\\u0041" * (size // 6)),
    "a number of digits": lambda size: b"[" + b"7" * size + b"]",
    "keys beside base64": _keys(value=b'{"b64":"QUE="}'),
}
"""Values that replace a field of the document, or the document itself."""

_SPLITS = {
    "columns": _numbered(lambda number: b'"c%d"' % number, b'{"columns":[', b'],"data":[[1]]}'),
    "columns of one name": _repeated(b'"c"', b'{"columns":[', b'],"data":[[1]]}'),
    "rows of a table": _repeated(b"[1,2,3]", b'{"columns":["a","b","x"],"data":[', b"]}"),
    "keys of a table": _keys(b'{"columns":["a","b","c"],"data":[[1,2,3]],'),
}

_TENSOR = b'"shape":[1],"datatype":"FP64","data":[1]'
_DISTANCE = b'{"inputs":[{"name":"distance",%s' % _TENSOR


def _data(datatype, name):
    return lambda size: (
        b'{"inputs":[{"name":"distance","shape":[7],"datatype":"%s","data":%s}]}'
        % (datatype, VALUES[name](size))
    )


_V2 = {
    "tensors": _numbered(
        lambda number: b'{"name":"t%d",%s}' % (number, _TENSOR), b'{"inputs":[', b"]}"
    ),
    "parameters": _keys(_DISTANCE + b'}],"parameters":{', b"}}"),
    "parameters of a tensor": _keys(_DISTANCE + b',"parameters":{', b"}}]}"),
    "outputs": _numbered(lambda n: b'{"name":"o%d"}' % n, _DISTANCE + b'}],"outputs":[', b"]}"),
    "sizes": _repeated(
        b"1", b'{"inputs":[{"name":"distance","datatype":"FP64","data":[1],"shape":[', b"]}]}"
    ),
    "an id": lambda size: b'{"id":"%s",' % (b"a" * size) + _DISTANCE[1:] + b"}]}",
    "numbers as FP64": _data(b"FP64", "numbers"),
    "digits as INT64": _data(b"INT64", "a number of digits"),
}

_LINES = {
    "blank lines": lambda size: b"\n" * size,
    "records and a wrong one": _lines(_RECORD, after=b'\n{"carrier":5}'),
    "records with keys of their own": _numbered(
        lambda n: _RECORD[:-1] + b',"k%d":1}' % n, b"", b"", b"\n"
    ),
    "keys in a line": _keys(),
    "depth in lines": _lines(b"[" * 900 + b"]" * 900),
}

_HEADER = b"carrier,distance,hour,late\n"
_CSV = {
    "blank lines": lambda size: b"\n" * size,
    "columns": _numbered(lambda number: b"c%d" % number, b"", b"\n1"),
    "rows and a wrong one": _lines(b"AA,1.5,3,true", _HEADER, b"\nAA,x,3,true"),
    "a field in quotes": lambda size: _HEADER + b'"%s"' % (b'""' * (size // 2)),
    "an open quote": lambda size: _HEADER + b'"' + b"\n" * size,
    "a number of digits": lambda size: _HEADER + b"AA,1,%s,true" % (b"7" * size),
}


def _columns(size):
    numbers = range(size // 50)
    return arrow_stream(pa.table({f"c{number}": [1.0] for number in numbers}))


def _rows(size):
    rows = size // 20
    columns = {
        "carrier": [f"a{number}" for number in range(rows)],
        "distance": np.arange(rows) * 0.1,
        "hour": np.arange(rows),
        "late": np.arange(rows) % 2 == 1,
    }
    return arrow_stream(pa.table(columns))


_ARROW = {
    "columns": _columns,
    "rows": _rows,
}
_FEEDBACK = {
    "entries": _numbered(
        lambda number: b'{"prediction_id":"%d","label":1}' % number, b'{"feedback":[', b"]}"
    ),
    "keys": _keys(),
    "keys of a key": _keys(b'{"label":1,"key":{', b"}}"),
    "unknown columns": _numbered(
        lambda number: b'{"key":{"hour":%d},"label":1}' % number,
        b'{"feedback":[',
        b',{"key":{"hout":1},"label":1}]}',
    ),
}
_TABLES = {"csv": _CSV, "jsonl": _LINES, "arrow": _ARROW, "feedback": _FEEDBACK}


def _within(field, fills):
    return {
        f"{name} in {field.decode()}": lambda size, fill=fill: b'{"%s":%s}' % (field, fill(size))  # type: ignore[misc]
        for name, fill in fills.items()
    }


def shapes(route):
    """Return bodies for a route, by the element that is repeated."""
    if route.reads in _TABLES:
        return _TABLES[route.reads]
    if route.reads not in FIELDS:
        return VALUES
    field = FIELDS[route.reads]
    before = route.good[:-1] + b","
    fills = _within(field, VALUES)
    fills["keys of the document"] = VALUES["keys"]
    fills["keys beside the field"] = _keys(before)
    fills["keys of params"] = _keys(before + b'"params":{', b"}}")
    fills["keys of parameters"] = _keys(before + b'"parameters":{', b"}}")
    fills["the field again and again"] = _repeated(b'"%s":[1]' % field, b"{", b"}")
    if route.reads in ("invocations", "azure"):
        fills |= _within(field, _SPLITS)
    if route.reads == "v2":
        fills |= _V2
    return fills
