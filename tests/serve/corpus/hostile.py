"""Bodies whose cost must not grow faster than their size: patterns that are repeated up
to any size, by language.

Most of these bodies are refused. The tests measure the cost and ignore the response.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from tests.serve.corpus.bodies import FIELDS as FIELDS
from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import RECORD, dump, table
from tests.support.bodies import arrow_stream

Fill = Callable[[int], bytes]
"""The approximate size of the bodies in bytes."""


def filled(
    size: int,
    piece: Callable[[int], bytes],
    before: bytes = b"",
    after: bytes = b"",
    by: bytes = b",",
) -> bytes:
    """Return numbered pieces up to a size, between a beginning and an end."""
    length = len(piece(10_000)) + len(by)
    return before + by.join(map(piece, range(max(1, size // length)))) + after


def _repeated(
    size: int, piece: bytes, before: bytes = b"", after: bytes = b"", by: bytes = b","
) -> bytes:
    return before + by.join([piece] * max(1, size // (len(piece) + len(by)))) + after


def _keys(value: bytes) -> Callable[[int], bytes]:
    return lambda number: b'"k%d":%s' % (number, value)


VALUES: dict[str, Fill] = {
    "keys": lambda size: filled(size, _keys(b"1"), b"{", b"}"),
    "keys of arrays": lambda size: filled(size, _keys(b"[1]"), b"{", b"}"),
    "keys of objects": lambda size: filled(size, _keys(b"{}"), b"{", b"}"),
    "keys with escapes": lambda size: filled(
        size, lambda number: b'"\\u0041%d":1' % number, b"{", b"}"
    ),
    "one key again and again": lambda size: _repeated(size, b'"k":[1]', b"{", b"}"),
    "numbers": lambda size: _repeated(size, b"1.5", b"[", b"]"),
    "nulls": lambda size: _repeated(size, b"null", b"[", b"]"),
    "texts": lambda size: _repeated(size, b'"a"', b"[", b"]"),
    "rows of one number": lambda size: _repeated(size, b"[1]", b"[", b"]"),
    "rows of three numbers": lambda size: _repeated(size, b"[1.5,2,3]", b"[", b"]"),
    "rows of three and one of two": lambda size: _repeated(size, b"[1.5,2,3]", b"[", b",[1,2]]"),
    "rows of four values": lambda size: _repeated(size, b'["AA",1.5,3,true]', b"[", b"]"),
    "rows of four values and a wrong one": lambda size: _repeated(
        size, b'["AA",1.5,3,true]', b"[", b',["AA",1,1.5,7]]'
    ),
    "empty rows": lambda size: _repeated(size, b"[]", b"[", b"]"),
    "empty objects": lambda size: _repeated(size, b"{}", b"[", b"]"),
    "a row of numbers": lambda size: _repeated(size, b"1.5", b"[[", b"]]"),
    "an object of keys": lambda size: filled(size, _keys(b"1"), b"[{", b"}]"),
    "objects with keys of their own": lambda size: filled(
        size, lambda n: b'{"k%d":1}' % n, b"[", b"]"
    ),
    "records with keys of their own": lambda size: filled(
        size, lambda n: dump(RECORD)[:-1] + b',"k%d":1}' % n, b"[", b"]"
    ),
    "records": lambda size: _repeated(size, dump(RECORD), b"[", b"]"),
    "records and a wrong one": lambda size: _repeated(size, dump(RECORD), b"[", b',{"carrier":5}]'),
    "records without a column": lambda size: _repeated(
        size, b'{"carrier":"AA","hour":3}', b"[", b"]"
    ),
    "pictures": lambda size: _repeated(size, b"[[1,2],[3,4]]", b"[", b"]"),
    "pictures and a ragged one": lambda size: _repeated(
        size, b"[[1,2],[3,4]]", b"[", b",[[1,2],[3]]]"
    ),
    "depth after depth": lambda size: _repeated(size, b"[" * 900 + b"]" * 900, b"[", b"]"),
    "objects after objects": lambda size: _repeated(
        size, b'{"a":' * 900 + b"1" + b"}" * 900, b"[", b"]"
    ),
    "a text": lambda size: b'"%s"' % (b"a" * size),
    "a text in a row": lambda size: b'[["%s"]]' % (b"a" * size),
    "escapes": lambda size: b'["%s"]' % (b"\\u0041" * (size // 6)),
    "a number of digits": lambda size: b"[" + b"7" * size + b"]",
    "a fraction of digits": lambda size: b"[0." + b"7" * size + b"]",
    "large integers": lambda size: _repeated(size, b"1" + b"0" * 40, b"[", b"]"),
    "NaN": lambda size: _repeated(size, b"NaN", b"[", b"]"),
    "keys beside NaN": lambda size: filled(size, _keys(b"NaN"), b"{", b"}"),
    "base64": lambda size: _repeated(size, b'{"b64":"QUE="}', b"[", b"]"),
    "keys beside base64": lambda size: filled(size, _keys(b'{"b64":"QUE="}'), b"{", b"}"),
}
"""Values that replace a field of the document, or the document itself."""

_SOME = {
    name: VALUES[name]
    for name in (
        "keys",
        "one key again and again",
        "numbers",
        "rows of four values and a wrong one",
        "empty rows",
        "empty objects",
        "objects with keys of their own",
        "records and a wrong one",
        "pictures and a ragged one",
        "depth after depth",
        "a text",
        "escapes",
        "keys beside NaN",
        "keys beside base64",
    )
}
"""Languages that are read by the same functions as another language."""
_ALL = {"invocations", "inputs", "v2", "tf tensor"}


def _columns(column: Callable[[int], bytes]) -> Fill:
    return lambda size: (
        filled(size // 2, column, b'{"columns":[', b'],"data":[')
        + _repeated(size // 2, b"1.5", b"[", b"]]}")
    )


_SPLITS: dict[str, Fill] = {
    "columns": _columns(lambda number: b'"c%d"' % number),
    "columns of one name": _columns(lambda number: b'"c"'),
    "columns by number": _columns(lambda number: b"%d" % number),
    "columns of arrays": _columns(lambda number: b"[]"),
    "an index": lambda size: _repeated(
        size, b"1", b'{"columns":["a","b","c"],"data":[[1,2,3]],"index":[', b"]}"
    ),
    "rows of a table": lambda size: _repeated(
        size, b"[1,2,3]", b'{"columns":["a","b","c"],"data":[', b"]}"
    ),
    "rows of a table beside a column": lambda size: _repeated(
        size, b"[1,2,3]", b'{"columns":["a","b","x"],"data":[', b"]}"
    ),
    "keys of a table": lambda size: filled(
        size, _keys(b"1"), b'{"columns":["a","b","c"],"data":[[1,2,3]],', b"}"
    ),
}

_TENSOR = b'"shape":[1],"datatype":"FP64","data":[1]'


def _tensors(
    tensor: Callable[[int], bytes], before: bytes = b'{"inputs":[', after: bytes = b"]}"
) -> Fill:
    return lambda size: filled(size, tensor, before, after)


def _data(datatype: bytes, values: Fill, shape: bytes) -> Fill:
    return lambda size: (
        b'{"inputs":[{"name":"distance","shape":%s,"datatype":"%s","data":%s}]}'
        % (shape, datatype, values(size))
    )


_V2: dict[str, Fill] = {
    "tensors": _tensors(lambda number: b'{"name":"t%d",%s}' % (number, _TENSOR)),
    "tensors of one name": _tensors(lambda number: b'{"name":"t",%s}' % _TENSOR),
    "tensors with parameters": _tensors(
        lambda number: b'{"name":"t%d","parameters":{"x":1},%s}' % (number, _TENSOR)
    ),
    "parameters": _tensors(
        _keys(b"1"), b'{"inputs":[{"name":"distance",%s}],"parameters":{' % _TENSOR, b"}}"
    ),
    "parameters of a tensor": _tensors(
        _keys(b"1"), b'{"inputs":[{"name":"distance",%s,"parameters":{' % _TENSOR, b"}}]}"
    ),
    "keys of a tensor": _tensors(
        _keys(b"1"), b'{"inputs":[{"name":"distance",%s,' % _TENSOR, b"}]}"
    ),
    "keys of the request": _tensors(
        _keys(b"1"), b'{"inputs":[{"name":"distance",%s}],' % _TENSOR, b"}"
    ),
    "keys of the request with escapes": _tensors(
        _keys(b'"\\u0041"'), b'{"inputs":[{"name":"distance",%s}],' % _TENSOR, b"}"
    ),
    "outputs": _tensors(
        lambda number: b'{"name":"o%d"}' % number,
        b'{"inputs":[{"name":"distance",%s}],"outputs":[' % _TENSOR,
    ),
    "outputs of one name": _tensors(
        lambda n: b'{"name":"label"}', b'{"inputs":[{"name":"distance",%s}],"outputs":[' % _TENSOR
    ),
    "sizes": _tensors(
        lambda number: b"1",
        b'{"inputs":[{"name":"distance","datatype":"FP64","data":[1],"shape":[',
        b"]}]}",
    ),
    "an id": lambda size: b'{"id":"%s","inputs":[{"name":"distance",%s}]}' % (b"a" * size, _TENSOR),
    **{
        f"data: {name} as {datatype.decode()}": _data(datatype, VALUES[name], b"[7]")
        for name, datatype in (
            ("numbers", b"FP64"),
            ("numbers", b"INT64"),
            ("texts", b"BYTES"),
            ("rows of one number", b"FP64"),
            ("pictures", b"FP32"),
            ("pictures and a ragged one", b"FP32"),
            ("empty rows", b"FP64"),
            ("empty objects", b"BYTES"),
            ("depth after depth", b"BYTES"),
            ("depth after depth", b"FP64"),
            ("a number of digits", b"INT64"),
            ("keys", b"FP64"),
            ("keys", b"BYTES"),
        )
    },
}

_LINES: dict[str, Fill] = {
    "blank lines": lambda size: b"\n" * size,
    "lines of blanks": lambda size: b" \n" * (size // 2),
    "empty objects": lambda size: _repeated(size, b"{}", by=b"\n"),
    "empty arrays": lambda size: _repeated(size, b"[]", by=b"\n"),
    "numbers": lambda size: _repeated(size, b"1", by=b"\n"),
    "records": lambda size: _repeated(size, dump(RECORD), by=b"\n"),
    "records and a wrong one": lambda size: _repeated(
        size, dump(RECORD), after=b'\n{"carrier":5}', by=b"\n"
    ),
    "records with a wrong value at the end": lambda size: _repeated(
        size, dump(RECORD), after=b"\n" + dump({**RECORD, "hour": "x"}), by=b"\n"
    ),
    "records with keys of their own": lambda size: filled(
        size, lambda n: dump(RECORD)[:-1] + b',"k%d":1}' % n, by=b"\n"
    ),
    "keys in a line": lambda size: filled(size, _keys(b"1"), b"{", b"}"),
    "a text in a line": lambda size: b'"%s"' % (b"a" * size),
    "rows": lambda size: _repeated(size, b'["AA",1.5,3,true]', by=b"\n"),
    "depth in lines": lambda size: _repeated(size, b"[" * 900 + b"]" * 900, by=b"\n"),
}

_HEADER = b"carrier,distance,hour,late\n"
_CSV: dict[str, Fill] = {
    "blank lines": lambda size: b"\n" * size,
    "blank lines below a header": lambda size: _HEADER + b"\n" * size,
    "lines of blanks": lambda size: b" \n" * (size // 2),
    "lines of a comma": lambda size: _HEADER + b",\n" * (size // 2),
    "lines of three commas": lambda size: _HEADER + b",,,\n" * (size // 4),
    "columns": lambda size: filled(size, lambda number: b"c%d" % number, after=b"\n1"),
    "columns of no name": lambda size: b"," * size,
    "columns of no name in two lines": lambda size: b"," * (size // 2) + b"\n" + b"," * (size // 2),
    "columns with a row": lambda size: (
        filled(size // 2, lambda n: b"c%d" % n) + b"\n" + _repeated(size // 2, b"123456")
    ),
    "rows": lambda size: _repeated(size, b"AA,1.5,3,true", _HEADER, by=b"\n"),
    "rows and a wrong one": lambda size: _repeated(
        size, b"AA,1.5,3,true", _HEADER, b"\nAA,x,3,true", by=b"\n"
    ),
    "rows that have NA": lambda size: _repeated(size, b"AA,NA,3,true", _HEADER, by=b"\n"),
    "rows and a short one": lambda size: _repeated(
        size, b"AA,1.5,3,true", _HEADER, b"\nAA", by=b"\n"
    ),
    "a field": lambda size: _HEADER + b"a" * size,
    "a field in quotes": lambda size: _HEADER + b'"%s"' % (b'""' * (size // 2)),
    "an open quote": lambda size: _HEADER + b'"' + b"\n" * size,
    "a number of digits": lambda size: _HEADER + b"AA,1,%s,true" % (b"7" * size),
    "fields of digits": lambda size: _repeated(
        size, b"AA,1,%s,true" % (b"7" * 100_000), _HEADER, by=b"\n"
    ),
    "carriage returns": lambda size: _HEADER + b"\r" * size,
}


def _arrow_columns(write: Callable[[pa.Table], bytes]) -> Fill:
    return lambda size: write(
        pa.table({f"c{number}": pa.array([1.0]) for number in range(size // 50)})
    )


def _arrow_twins(size: int) -> bytes:
    arrays = [pa.array([1.0])] * (size // 50)
    return arrow_stream(pa.Table.from_arrays(arrays, names=["distance"] * len(arrays)))


def _batches(size: int) -> bytes:
    chunk = table([RECORD])
    return arrow_stream(pa.concat_tables([chunk] * (size // 400)))


def _rows(write: Callable[[pa.Table], bytes]) -> Fill:
    def fill(size: int) -> bytes:
        rows = size // 20
        return write(
            pa.table(
                {
                    "carrier": pa.array([f"a{number}" for number in range(rows)]),
                    "distance": np.arange(rows) * 0.1,
                    "hour": np.arange(rows),
                    "late": np.arange(rows) % 2 == 1,
                }
            )
        )

    return fill


_ARROW: dict[str, Fill] = {
    "columns": _arrow_columns(arrow_stream),
    "columns of one name": _arrow_twins,
    "batches": _batches,
    "rows": _rows(arrow_stream),
}


def _entry(number: int) -> bytes:
    return b'{"prediction_id":"%d","label":1}' % number


_FEEDBACK: dict[str, Fill] = {
    "entries": lambda size: filled(size, _entry, b'{"feedback":[', b"]}"),
    "entries of nothing": lambda size: _repeated(size, b"{}", b'{"feedback":[', b"]}"),
    "keys": lambda size: filled(size, _keys(b"1"), b"{", b"}"),
    "keys of an entry": lambda size: filled(size, _keys(b"1"), b'{"feedback":[{', b"}]}"),
    "keys of a key": lambda size: filled(size, _keys(b"1"), b'{"label":1,"key":{', b"}}"),
    "keys beside feedback": lambda size: filled(size, _keys(b"1"), b'{"feedback":[],', b"}"),
    "a key of a long name": lambda size: b'{"label":1,"key":{"%s":1}}' % (b"a" * size),
    "a label": lambda size: b'{"prediction_id":"1","label":"%s"}' % (b"a" * size),
    "unknown columns": lambda size: filled(
        size,
        lambda number: b'{"key":{"hour":%d},"label":1}' % number,
        b'{"feedback":[',
        b',{"key":{"hout":1},"label":1}]}',
    ),
}


_TABLES = {"csv": _CSV, "jsonl": _LINES, "arrow": _ARROW, "feedback": _FEEDBACK}


def _within(field: bytes, fills: dict[str, Fill]) -> Iterator[tuple[str, Fill]]:
    for name, fill in fills.items():

        def object_of(size: int, fill: Fill = fill) -> bytes:
            return b'{"%s":%s}' % (field, fill(size))

        yield f"{name} in {field.decode()}", object_of


def shapes(route: Route) -> dict[str, Fill]:
    """Return bodies for a route, by the element that is repeated."""
    if route.reads in _TABLES:
        return _TABLES[route.reads]
    if route.reads not in FIELDS:
        return _SOME if route.path.endswith("/load") else VALUES
    field = FIELDS[route.reads]
    before = route.good[:-1] + b","
    fills = dict(_within(field, VALUES if route.reads in _ALL else _SOME))
    fills["keys of the document"] = VALUES["keys"]
    fills["keys beside the field"] = lambda size: filled(size, _keys(b"1"), before, b"}")
    fills["keys of params"] = lambda size: filled(size, _keys(b"1"), before + b'"params":{', b"}}")
    fills["keys of parameters"] = lambda size: filled(
        size, _keys(b"1"), before + b'"parameters":{', b"}}"
    )
    fills["the field again and again"] = lambda size: _repeated(
        size, b'"%s":[1]' % field, b"{", b"}"
    )
    if route.reads in ("invocations", "azure"):
        fills |= _within(field, _SPLITS)
    if route.reads == "v2":
        fills |= _V2
    return fills
