"""The requests to `/invocations` of MLflow's scoring server and of onnxserve, for each
form and each value.
"""

import json
from typing import Any

import pytest

JSON = "application/json"
CSV = "text/csv"


def case(name, model, body, content_type):
    """Return one request: its model, its content (bytes, a text, or a document that is
    sent as JSON), and its content type.
    """
    if not isinstance(body, bytes):
        text = body if isinstance(body, str) else json.dumps(body)
        body = text.encode()
    return pytest.param(name, model, body, content_type, id=name)


NAMES = ["carrier", "distance", "hour", "holiday"]
ROWS = [["AA", 900.5, 20, True], ["Zürich", 300.0, 2, False], ["UA", 1500.0, 23, False]]
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
BY_COLUMN = dict(zip(NAMES, map(list, zip(*ROWS, strict=True)), strict=True))
CSV_ROWS = "carrier,distance,hour,holiday\nAA,900.5,20,True\nZürich,300.0,2,False\n"
ABC = [[1.0, 2.0, 3.0], [4.0, -5.0, 6.5]]


def split(columns, *rows, **more):
    return {"dataframe_split": {"columns": columns, "data": list(rows), **more}}


def mixed(**changed):
    """Return the first two flights, the first with changed values."""
    return {"dataframe_records": [RECORDS[0] | changed, RECORDS[1]]}


def abc(*values):
    return split(["a", "b", "c"], list(values), ABC[1])


DOCUMENTS: dict[str, dict[str, Any]] = {
    "mixed": {
        "split": split(NAMES, *ROWS),
        "split with an index": {
            "dataframe_split": {"columns": NAMES, "data": ROWS, "index": [5, 6, 7]}
        },
        "split without columns": {"dataframe_split": {"data": ROWS}},
        "split with data that is an object": {
            "dataframe_split": {"columns": NAMES, "data": BY_COLUMN}
        },
        "records": {"dataframe_records": RECORDS},
        "records that lack different columns": {
            "dataframe_records": [RECORDS[0], {"carrier": "AA"}]
        },
        "instances of records": {"instances": RECORDS},
        "instances of rows": {"instances": ROWS},
        "inputs by column": {"inputs": BY_COLUMN},
        "inputs of rows": {"inputs": ROWS},
        "inputs of records": {"inputs": RECORDS},
        "params that no model declares": split(NAMES, *ROWS) | {"params": {"temperature": 1}},
        "params that are null": split(NAMES, *ROWS) | {"params": None},
        "params that are a list": split(NAMES, *ROWS) | {"params": [1]},
        "two forms": split(NAMES, *ROWS) | {"instances": ROWS},
        "no form": {"data": ROWS},
        "an empty object": {},
        "columns in another order": split(NAMES[::-1], *[row[::-1] for row in ROWS]),
        "a column too many": split([*NAMES, "more"], *[[*row, {}] for row in ROWS]),
        "a whole float in a long column": mixed(hour=20.0),
        "a fraction in a long column": mixed(hour=20.7),
        "a number in a boolean column": mixed(holiday=1),
        "a text in a boolean column": mixed(holiday="false"),
        "a number in a text column": mixed(carrier=5),
        "null in a boolean column": mixed(holiday=None),
        "an integer beyond 64 bits in a long column": mixed(hour=2**63),
        "an integer at the end of 64 bits": mixed(hour=2**63 - 1),
        "unicode in a text column": mixed(carrier="東京 ✈ \u0000"),
    },
    "targets": {
        "instances of rows for a tensor": {"instances": ABC},
        "inputs by any name for a tensor without one": {"inputs": {"x": ABC}},
        "a form twice": b'{"inputs": [[9, 9, 9]], "inputs": [[1.0, 2.0, 3.0]]}',
        "a byte order mark": b"\xef\xbb\xbf" + json.dumps({"inputs": ABC}).encode(),
        "UTF-16": json.dumps({"inputs": ABC}).encode("utf-16"),
        "a table for a tensor": split(["p", "q", "r"], *ABC),
        "records for a tensor": {"dataframe_records": [{"p": 1.0, "q": 2.0, "r": 3.0}]},
        "instances of records for a tensor": {"instances": [{"p": 1.0, "q": 2.0, "r": 3.0}]},
        "null in a tensor": {"inputs": [[None, 2.0, 3.0]]},
    },
    "regressor": {
        "a column twice": split(["a", "b", "c", "a"], [1.0, 2.0, 3.0, 4.0]),
        "a row too long": split(["a", "b", "c"], [1.0, 2.0, 3.0, 4.0]),
        "a boolean in a double column": abc(True, 2.0, 3.0),
        "a number as text in a double column": abc("1.0", 2.0, 3.0),
        "a number as large as doubles go": b'{"inputs": {"a": [1e999], "b": [1.0], "c": [1.0]}}',
        "a scalar beside columns": {"inputs": {"a": 1.0, "b": [1.0, 2.0], "c": [1.0, 2.0]}},
        "one row": split(["a", "b", "c"], ABC[0]),
    },
    "gaps": {
        "a record without a value where the model fills gaps": {
            "dataframe_records": [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 2.0}]
        },
    },
    "integers": {
        "labels of integers": {"inputs": ABC},
    },
    "booleans": {
        "labels of booleans": {"inputs": ABC},
    },
    "probabilities": {
        "probabilities": {"inputs": ABC},
    },
    "image": {
        "a tensor": {"inputs": [[[1.5, 2.0], [3.0, 4.0]]]},
        "a tensor by its name": {"inputs": {"x": [[[1.5, 2.0], [3.0, 4.0]]]}},
        "a tensor of texts": {"inputs": [[["1", "2"], ["3", "4"]]]},
        "a tensor of booleans": {"inputs": [[[True, False], [True, True]]]},
        "a number beyond 32 bits in a tensor": {"inputs": [[[1e39, 2.0], [3.0, 4.0]]]},
        "a tensor in a table": {
            "dataframe_split": {"columns": ["x"], "data": [[[[1.0, 2.0], [3.0, 4.0]]]]}
        },
    },
    "pair": {
        "two tensors": {"inputs": {"a": [[1.0, 2.0]], "b": [3]}},
        "two tensors as instances": {
            "instances": [{"a": [1.0, 2.0], "b": 3}, {"a": [4.0, 5.0], "b": 6}]
        },
        "two tensors in a list": {"inputs": [[1.0, 2.0]]},
        "a fraction in an integer tensor": {"inputs": {"a": [[1.0, 2.0]], "b": [3.7]}},
    },
    "stock-tensor": {
        "stock, a tensor": {"inputs": [[1.0, 2.0], [3.0, 4.0]]},
    },
    "stock-named": {
        "stock, a named tensor": {"inputs": {"x": [[1.0, 2.0]]}},
        "stock, a named tensor without its name": {"inputs": [[1.0, 2.0]]},
    },
    "stock-columns": {
        "stock, columns": split(["q", "p"], [1.0, 2.0], [3.0, 4.0]),
        "stock, records": {"dataframe_records": [{"p": 1.0, "q": 2.0}]},
    },
    "stock-bare": {
        "stock without a signature, inputs": {"inputs": [[1.0, 2.0]]},
        "stock without a signature, inputs by name": {"inputs": {"x": [[1.0, 2.0]]}},
        "stock without a signature, a table": split(["p", "q"], [1.0, 2.0]),
        "stock without a signature, a table in escaped letters": (
            b'{"d\\u0061taframe_split": {"columns": ["p", "q"], "data": [[1.0, 2.0]]}}'
        ),
    },
    "wide-columns": {
        "stock, several values a row": split(["p", "q"], [1.0, 2.0], [3.0, 4.0]),
    },
    "wide-bare": {
        "stock without a signature, several values a row in a table": split(
            ["p", "q"], [1.0, 2.0], [3.0, 4.0]
        ),
    },
    "wide-tensor": {
        "stock, several values a row of a tensor": {"inputs": [[1.0, 2.0], [3.0, 4.0]]},
    },
    "uneven-columns": {
        "stock, outputs of different widths": split(["p", "q"], [1.0, 2.0], [3.0, 4.0]),
    },
    "uneven-bare": {
        "stock without a signature, outputs of different widths in a table": split(
            ["p", "q"], [1.0, 2.0], [3.0, 4.0]
        ),
    },
}
HEADER = "carrier,distance,hour,holiday\n"
FLIGHTS = {
    "CSV with a quote that is left open": '"AA,1.0,2,True\n',
    "CSV with spaces": " AA, 900.5, 20,True\n",
    "CSV with a row too short": "AA,900.5,20\n",
    "CSV with a row too long": "AA,900.5,20,True,1\n",
    "CSV without rows": "",
    "CSV with an empty integer": "AA,900.5,,True\n",
    "CSV with an empty boolean": "AA,900.5,20,\n",
    "CSV with an empty text": ",900.5,20,True\n",
    "CSV with the text NA": "NA,900.5,20,True\n",
    "CSV with the text null": "null,900.5,20,True\n",
    "CSV with true in upper case": "AA,900.5,20,TRUE\n",
    "CSV with a fraction for an integer": "AA,900.5,20.5,True\n",
    "CSV with a whole float for an integer": "AA,900.5,20.0,True\n",
    "CSV with an integer beyond 64 bits": "AA,1,9223372036854775808,True\n",
    "CSV with true in lower case": "AA,900.5,20,true\n",
    "CSV with 1 for true": "AA,900.5,20,1\n",
    "CSV with yes for true": "AA,900.5,20,yes\n",
    "CSV with a number for a text": "007,900.5,20,True\n",
    "CSV with 5 for true": "AA,900.5,20,5\n",
    "CSV with 1.0 for true": "AA,900.5,20,1.0\n",
    "CSV with an exponent for an integer": "AA,900.5,2e1,True\n",
    "CSV with NA for an integer": "AA,900.5,NA,True\n",
    "CSV with spaces around true": "AA,900.5,20, True\n",
}
"""Rows of CSV, which follow the header."""
TABLES: dict[str, dict[str, Any]] = {
    "stock-columns": {
        "stock, CSV": "p,q\n1.0,2.0\n3.0,4.0\n",
    },
    "stock-bare": {
        "stock without a signature, CSV": "p,q\n1.0,2.0\n3.0,4.0\n",
    },
    "mixed": {
        **{name: HEADER + row for name, row in FLIGHTS.items()},
        "CSV": CSV_ROWS,
        "CSV with CR": CSV_ROWS.replace("\n", "\r"),
        "CSV with CRLF": CSV_ROWS.replace("\n", "\r\n"),
        "CSV with a byte order mark": "\ufeff" + CSV_ROWS,
        "CSV with blank lines": CSV_ROWS.replace("\n", "\n\n"),
        "CSV with a line of spaces": CSV_ROWS + "   \n",
        "CSV with quotes": '"carrier","distance",hour,holiday\n"A,A ""x""\nb",900.5,"20",True\n',
        "CSV with another order": "hour,holiday,carrier,distance\n20,True,AA,900.5\n",
        "CSV with a column too many": "carrier,distance,hour,holiday,x\nAA,900.5,20,True,abc\n",
        "CSV with a column missing": "carrier,distance,hour\nAA,900.5,20\n",
        "CSV that is empty": "",
        "CSV that is no UTF-8": CSV_ROWS.encode("latin-1"),
    },
    "regressor": {
        "CSV with a column twice": "a,b,c,a\n1,2,3,4\n",
        "CSV with a second row too long": "a,b,c\n1,2,3\n1,2,3,4\n",
        "CSV with an index": ",a,b,c\n0,1,2,3\n",
        "CSV with an empty number": "a,b,c\n,2,3\n",
        "CSV with NA for a number": "a,b,c\nNA,2,3\n",
        "CSV with nan for a number": "a,b,c\nnan,2,3\n",
        "CSV with a text for a number": "a,b,c\nx,2,3\n",
        "CSV with 1_0 for a number": "a,b,c\n1_0,2,3\n",
        "CSV with an exponent": "a,b,c\n1e2,2,3\n",
        "CSV with infinity": "a,b,c\ninf,2,3\n",
        "CSV with semicolons": "a;b;c\n1;2;3\n",
        "CSV with spaces in the header": "a, b, c\n1,2,3\n",
    },
    "gaps": {
        "CSV with NA where the model fills gaps": "a,b,c\nNA,2,3\n1,NULL,3\n1,2,nan\n1,n/a,<NA>\n",
        "CSV with gaps where the model fills them": "a,b,c\n,2,3\n1,,\n",
    },
    "targets": {
        "CSV for a tensor": "p,q,r\n1.0,2.0,3.0\n",
        "CSV of integers for a tensor": "p,q,r\n1,2,3\n",
    },
}
OF_OTHER_TYPES = {
    "no content type": (split(NAMES, *ROWS), None),
    "charset utf8": (split(NAMES, *ROWS), "application/json; charset=utf8"),
    "charset in quotes": (split(NAMES, *ROWS), 'application/json; charset="utf-8"'),
    "a semicolon at the end": (split(NAMES, *ROWS), "application/json;"),
    "upper case": (split(NAMES, *ROWS), "Application/JSON"),
    "Parquet": (b"PAR1", "application/vnd.apache.parquet"),
    "CSV with a header parameter": (CSV_ROWS.encode(), "text/csv; header=present"),
}
CASES = [case(name, "mixed", *sent) for name, sent in OF_OTHER_TYPES.items()]
for model, documents in DOCUMENTS.items():
    CASES += [case(name, model, body, JSON) for name, body in documents.items()]
for model, tables in TABLES.items():
    CASES += [case(name, model, body, CSV) for name, body in tables.items()]
