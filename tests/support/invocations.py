"""The requests to `/invocations` of MLflow's scoring server and of onnxserve, for each
form and each value.
"""

import json

import pytest

JSON = "application/json"
CSV = "text/csv"


def case(name, model, body, content_type=JSON):
    """One request: its model, its content (bytes, or a document that is sent as JSON),
    and its content type.
    """
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return pytest.param(name, model, sent, content_type, id=name)


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


GOOD = split(["a", "b", "c"], *ABC)
FORMS = [
    case("split", "mixed", split(NAMES, *ROWS)),
    case("split without columns", "mixed", {"dataframe_split": {"data": ROWS}}),
    case(
        "split with data that is an object",
        "mixed",
        {"dataframe_split": {"columns": NAMES, "data": BY_COLUMN}},
    ),
    case("records", "mixed", {"dataframe_records": RECORDS}),
    case(
        "records that lack different columns",
        "mixed",
        {"dataframe_records": [RECORDS[0], {"carrier": "AA"}]},
    ),
    case("instances of records", "mixed", {"instances": RECORDS}),
    case("instances of rows", "mixed", {"instances": ROWS}),
    case("inputs by column", "mixed", {"inputs": BY_COLUMN}),
    case("inputs of rows", "mixed", {"inputs": ROWS}),
    case("inputs of records", "mixed", {"inputs": RECORDS}),
    case("inputs by any name for a tensor without one", "targets", {"inputs": {"x": ABC}}),
    case(
        "params that no model declares",
        "mixed",
        split(NAMES, *ROWS) | {"params": {"temperature": 1}},
    ),
    case("params that are a list", "mixed", split(NAMES, *ROWS) | {"params": [1]}),
    case("two forms", "mixed", split(NAMES, *ROWS) | {"instances": ROWS}),
    case("no form", "mixed", {"data": ROWS}),
    case("an empty object", "mixed", {}),
    case("a form twice", "targets", b'{"inputs": [[9, 9, 9]], "inputs": [[1.0, 2.0, 3.0]]}'),
]
BODIES = [
    case("a byte order mark", "targets", b"\xef\xbb\xbf" + json.dumps({"inputs": ABC}).encode()),
    case("UTF-16", "targets", json.dumps({"inputs": ABC}).encode("utf-16")),
    case("no content type", "mixed", split(NAMES, *ROWS), None),
    case("charset utf8", "mixed", split(NAMES, *ROWS), "application/json; charset=utf8"),
    case("charset in quotes", "mixed", split(NAMES, *ROWS), 'application/json; charset="utf-8"'),
    case("a semicolon at the end", "mixed", split(NAMES, *ROWS), "application/json;"),
    case("upper case", "mixed", split(NAMES, *ROWS), "Application/JSON"),
    case("Parquet", "mixed", b"PAR1", "application/vnd.apache.parquet"),
]
COLUMNS = [
    case("columns in another order", "mixed", split(NAMES[::-1], *[row[::-1] for row in ROWS])),
    case("a column too many", "mixed", split([*NAMES, "more"], *[[*row, {}] for row in ROWS])),
    case("a column twice", "regressor", split(["a", "b", "c", "a"], [1.0, 2.0, 3.0, 4.0])),
    case("a row too long", "regressor", split(["a", "b", "c"], [1.0, 2.0, 3.0, 4.0])),
    case("a table for a tensor", "targets", split(["p", "q", "r"], *ABC)),
    case(
        "records for a tensor", "targets", {"dataframe_records": [{"p": 1.0, "q": 2.0, "r": 3.0}]}
    ),
    case(
        "instances of records for a tensor",
        "targets",
        {"instances": [{"p": 1.0, "q": 2.0, "r": 3.0}]},
    ),
]
VALUES = [
    case("a whole float in a long column", "mixed", mixed(hour=20.0)),
    case("a fraction in a long column", "mixed", mixed(hour=20.7)),
    case("a boolean in a double column", "regressor", abc(True, 2.0, 3.0)),
    case("a number in a boolean column", "mixed", mixed(holiday=1)),
    case("a text in a boolean column", "mixed", mixed(holiday="false")),
    case("a number as text in a double column", "regressor", abc("1.0", 2.0, 3.0)),
    case("a number in a text column", "mixed", mixed(carrier=5)),
    case("null in a boolean column", "mixed", mixed(holiday=None)),
    case("null in a tensor", "targets", {"inputs": [[None, 2.0, 3.0]]}),
    case(
        "a number as large as doubles go",
        "regressor",
        b'{"inputs": {"a": [1e999], "b": [1.0], "c": [1.0]}}',
    ),
    case("an integer beyond 64 bits in a long column", "mixed", mixed(hour=2**63)),
    case("an integer at the end of 64 bits", "mixed", mixed(hour=2**63 - 1)),
    case("unicode in a text column", "mixed", mixed(carrier="東京 ✈ \u0000")),
    case(
        "a record without a value where the model fills gaps",
        "gaps",
        {"dataframe_records": [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 2.0}]},
    ),
    case(
        "a scalar beside columns",
        "regressor",
        {"inputs": {"a": 1.0, "b": [1.0, 2.0], "c": [1.0, 2.0]}},
    ),
]
ANSWERS = [
    case("labels of integers", "integers", {"inputs": ABC}),
    case("labels of booleans", "booleans", {"inputs": ABC}),
    case("probabilities", "probabilities", {"inputs": ABC}),
    case("one row", "regressor", split(["a", "b", "c"], ABC[0])),
]
TENSORS = [
    case("a tensor", "image", {"inputs": [[[1.5, 2.0], [3.0, 4.0]]]}),
    case("a tensor by its name", "image", {"inputs": {"x": [[[1.5, 2.0], [3.0, 4.0]]]}}),
    case("a tensor of texts", "image", {"inputs": [[["1", "2"], ["3", "4"]]]}),
    case("a tensor of booleans", "image", {"inputs": [[[True, False], [True, True]]]}),
    case("a number beyond 32 bits in a tensor", "image", {"inputs": [[[1e39, 2.0], [3.0, 4.0]]]}),
    case("two tensors", "pair", {"inputs": {"a": [[1.0, 2.0]], "b": [3]}}),
    case(
        "two tensors as instances",
        "pair",
        {"instances": [{"a": [1.0, 2.0], "b": 3}, {"a": [4.0, 5.0], "b": 6}]},
    ),
    case("two tensors in a list", "pair", {"inputs": [[1.0, 2.0]]}),
    case(
        "a tensor in a table",
        "image",
        {"dataframe_split": {"columns": ["x"], "data": [[[[1.0, 2.0], [3.0, 4.0]]]]}},
    ),
    case("a fraction in an integer tensor", "pair", {"inputs": {"a": [[1.0, 2.0]], "b": [3.7]}}),
    case("stock, a tensor", "stock-tensor", {"inputs": [[1.0, 2.0], [3.0, 4.0]]}),
    case("stock, a named tensor", "stock-named", {"inputs": {"x": [[1.0, 2.0]]}}),
    case("stock, a named tensor without its name", "stock-named", {"inputs": [[1.0, 2.0]]}),
    case("stock, CSV", "stock-columns", b"p,q\n1.0,2.0\n3.0,4.0\n", CSV),
    case("stock, columns", "stock-columns", split(["q", "p"], [1.0, 2.0], [3.0, 4.0])),
    case("stock, records", "stock-columns", {"dataframe_records": [{"p": 1.0, "q": 2.0}]}),
    case("stock without a signature, inputs", "stock-bare", {"inputs": [[1.0, 2.0]]}),
    case(
        "stock without a signature, inputs by name", "stock-bare", {"inputs": {"x": [[1.0, 2.0]]}}
    ),
    case("stock without a signature, a table", "stock-bare", split(["p", "q"], [1.0, 2.0])),
    case("stock without a signature, CSV", "stock-bare", b"p,q\n1.0,2.0\n3.0,4.0\n", CSV),
    case(
        "stock without a signature, a table in escaped letters",
        "stock-bare",
        b'{"d\\u0061taframe_split": {"columns": ["p", "q"], "data": [[1.0, 2.0]]}}',
    ),
    case("stock, several values a row", "wide-columns", split(["p", "q"], [1.0, 2.0], [3.0, 4.0])),
    case(
        "stock without a signature, several values a row in a table",
        "wide-bare",
        split(["p", "q"], [1.0, 2.0], [3.0, 4.0]),
    ),
    case(
        "stock, several values a row of a tensor",
        "wide-tensor",
        {"inputs": [[1.0, 2.0], [3.0, 4.0]]},
    ),
    case(
        "stock, outputs of different widths",
        "uneven-columns",
        split(["p", "q"], [1.0, 2.0], [3.0, 4.0]),
    ),
    case(
        "stock without a signature, outputs of different widths in a table",
        "uneven-bare",
        split(["p", "q"], [1.0, 2.0], [3.0, 4.0]),
    ),
]
CSVS = [
    case("CSV", "mixed", CSV_ROWS.encode(), CSV),
    case("CSV with a header parameter", "mixed", CSV_ROWS.encode(), "text/csv; header=present"),
    case("CSV with CR", "mixed", CSV_ROWS.replace("\n", "\r").encode(), CSV),
    case("CSV with a byte order mark", "mixed", ("\ufeff" + CSV_ROWS).encode(), CSV),
    case("CSV with blank lines", "mixed", CSV_ROWS.replace("\n", "\n\n").encode(), CSV),
    case("CSV with a line of spaces", "mixed", (CSV_ROWS + "   \n").encode(), CSV),
    case(
        "CSV with quotes",
        "mixed",
        b'"carrier","distance",hour,holiday\n"A,A ""x""\nb",900.5,"20",True\n',
        CSV,
    ),
    case(
        "CSV with a quote that is left open",
        "mixed",
        b'carrier,distance,hour,holiday\n"AA,1.0,2,True\n',
        CSV,
    ),
    case("CSV with spaces", "mixed", b"carrier,distance,hour,holiday\n AA, 900.5, 20,True\n", CSV),
    case(
        "CSV with another order", "mixed", b"hour,holiday,carrier,distance\n20,True,AA,900.5\n", CSV
    ),
    case(
        "CSV with a column too many",
        "mixed",
        b"carrier,distance,hour,holiday,x\nAA,900.5,20,True,abc\n",
        CSV,
    ),
    case("CSV with a column missing", "mixed", b"carrier,distance,hour\nAA,900.5,20\n", CSV),
    case("CSV with a column twice", "regressor", b"a,b,c,a\n1,2,3,4\n", CSV),
    case("CSV with a row too short", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20\n", CSV),
    case(
        "CSV with a row too long",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,20,True,1\n",
        CSV,
    ),
    case("CSV with a second row too long", "regressor", b"a,b,c\n1,2,3\n1,2,3,4\n", CSV),
    case("CSV with an index", "regressor", b",a,b,c\n0,1,2,3\n", CSV),
    case("CSV without rows", "mixed", b"carrier,distance,hour,holiday\n", CSV),
    case("CSV that is empty", "mixed", b"", CSV),
    case("CSV with an empty number", "regressor", b"a,b,c\n,2,3\n", CSV),
    case(
        "CSV with an empty integer",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,,True\n",
        CSV,
    ),
    case(
        "CSV with an empty boolean", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20,\n", CSV
    ),
    case(
        "CSV with an empty text", "mixed", b"carrier,distance,hour,holiday\n,900.5,20,True\n", CSV
    ),
    case(
        "CSV with the text NA", "mixed", b"carrier,distance,hour,holiday\nNA,900.5,20,True\n", CSV
    ),
    case("CSV with NA for a number", "regressor", b"a,b,c\nNA,2,3\n", CSV),
    case("CSV with nan for a number", "regressor", b"a,b,c\nnan,2,3\n", CSV),
    case("CSV with a text for a number", "regressor", b"a,b,c\nx,2,3\n", CSV),
    case("CSV with 1_0 for a number", "regressor", b"a,b,c\n1_0,2,3\n", CSV),
    case("CSV with an exponent", "regressor", b"a,b,c\n1e2,2,3\n", CSV),
    case("CSV with infinity", "regressor", b"a,b,c\ninf,2,3\n", CSV),
    case(
        "CSV with a fraction for an integer",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,20.5,True\n",
        CSV,
    ),
    case(
        "CSV with a whole float for an integer",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,20.0,True\n",
        CSV,
    ),
    case(
        "CSV with an integer beyond 64 bits",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,1,9223372036854775808,True\n",
        CSV,
    ),
    case(
        "CSV with true in lower case",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,20,true\n",
        CSV,
    ),
    case("CSV with 1 for true", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20,1\n", CSV),
    case(
        "CSV with yes for true", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20,yes\n", CSV
    ),
    case(
        "CSV with a number for a text",
        "mixed",
        b"carrier,distance,hour,holiday\n007,900.5,20,True\n",
        CSV,
    ),
    case("CSV with semicolons", "regressor", b"a;b;c\n1;2;3\n", CSV),
    case(
        "CSV with NA where the model fills gaps",
        "gaps",
        b"a,b,c\nNA,2,3\n1,NULL,3\n1,2,nan\n1,n/a,<NA>\n",
        CSV,
    ),
    case("CSV with gaps where the model fills them", "gaps", b"a,b,c\n,2,3\n1,,\n", CSV),
    case("CSV with 5 for true", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20,5\n", CSV),
    case(
        "CSV with 1.0 for true", "mixed", b"carrier,distance,hour,holiday\nAA,900.5,20,1.0\n", CSV
    ),
    case(
        "CSV with an exponent for an integer",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,2e1,True\n",
        CSV,
    ),
    case(
        "CSV with NA for an integer",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,NA,True\n",
        CSV,
    ),
    case(
        "CSV with spaces around true",
        "mixed",
        b"carrier,distance,hour,holiday\nAA,900.5,20, True\n",
        CSV,
    ),
    case("CSV with spaces in the header", "regressor", b"a, b, c\n1,2,3\n", CSV),
    case("CSV for a tensor", "targets", b"p,q,r\n1.0,2.0,3.0\n", CSV),
    case("CSV of integers for a tensor", "targets", b"p,q,r\n1,2,3\n", CSV),
    case("CSV that is no UTF-8", "mixed", CSV_ROWS.encode("latin-1"), CSV),
]
CASES = FORMS + BODIES + COLUMNS + VALUES + ANSWERS + TENSORS + CSVS
