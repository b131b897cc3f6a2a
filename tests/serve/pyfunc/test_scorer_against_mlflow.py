"""A pyfunc answers `/invocations` like MLflow's scoring server, with the same bytes for
each case.

`DIFFERENT` lists the intended differences with both statuses. An entry that no longer
differs fails the test.
"""

import io
import json

import pandas as pd
import pytest

JSON = "application/json"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
"""The rows of a file, which `onnxserve predict` passes to a model in its process."""


def split(columns, *rows, **more):
    return json.dumps({"dataframe_split": {"columns": columns, "data": rows}, **more}).encode()


def body(**document):
    return json.dumps(document).encode()


def parquet(**columns):
    file = io.BytesIO()
    pd.DataFrame(columns).to_parquet(file)
    return file.getvalue()


DAYS = ["when", "name"]
ABC = ["a", "b", "c"]
BLOB = "AAECAw=="
DOCUMENTS = {
    "days": {
        "dates": split(DAYS, ["2013-07-01T00:00:00", "ä"], ["2013-12-31", "b"]),
        "a param": split(DAYS, ["2013-07-01", "a"], params={"plus": 100}),
        "a param as text": split(DAYS, ["2013-07-01", "a"], params={"plus": "many"}),
        "a param that the model does not know": split(
            DAYS, ["2013-07-01", "a"], params={"minus": 1}
        ),
        "params that are a list": split(DAYS, ["2013-07-01", "a"], params=[1]),
        "a date of America": split(DAYS, ["12/31/2013", "a"]),
        "no date but null": split(DAYS, [None, "a"]),
        "a number for a date": split(DAYS, [1372723200000, "a"]),
        "an extra column": split([*DAYS, "more"], ["2013-07-01", "a", 1]),
        "broken JSON": b"{",
        "no UTF-8": b"\xff",
        "a list": b"[]",
        "two forms": body(inputs=[1], instances=[1]),
        "no form": body(data=[1]),
        "empty": b"",
    },
    "knn": {
        "columns of the signature": split(ABC, [1, 2, 3], [-1.0, 2, 3]),
        "columns in another order": split(["c", "b", "a"], [1, 2, 3]),
        "null for a number": split(ABC, [1, None, 3]),
        "NaN for a number": split(ABC, [1, float("nan"), 3]),
        "no rows": split(ABC),
        "data that is no list": body(dataframe_split={"columns": ["a"], "data": 3}),
        "split that is a number": body(dataframe_split=3),
        "records that are numbers": body(dataframe_records=[1, 2]),
    },
    "anything": {
        "no signature, a table": split(["x", "y"], [1, "a"], [2.5, None]),
        "no signature, a list": body(inputs=[1, 2, 3]),
        "no signature, a mapping": body(inputs={"a": [1, 2], "b": [[1], [2]]}),
        "no signature, texts": body(instances=["a", "b"]),
        "no signature, ragged": body(instances=[[1], [1, 2]]),
        "no signature, chat messages": body(messages=[{"role": "user", "content": "hello"}]),
    },
    "nested": {
        "objects": body(
            dataframe_records=[
                {"points": [1, 2.5], "place": {"name": "p", "height": 1}, "tags": ["t"]}
            ]
        ),
        "an object that lacks a key": body(
            dataframe_records=[{"points": [1], "place": {}, "tags": []}]
        ),
        "an array of another type": body(
            dataframe_records=[{"points": ["a"], "place": {"name": "p", "height": 1}, "tags": []}]
        ),
    },
    "bytes": {
        "no base64": split(["blob"], ["%%"]),
        "an optional column": split(["blob", "extra"], [BLOB, 1.5]),
    },
    "tensors": {
        "named tensors": body(inputs={"a": [[1, 2], [3, 4]], "b": [1, 2]}),
        "a tensor missing": body(inputs={"a": [[1, 2]]}),
        "a tensor of another shape": body(inputs={"a": [[1, 2, 3]], "b": [1]}),
        "named tensors by row": body(instances=[{"a": [1, 2], "b": 3}]),
    },
    "troubled": {
        "a text out": split(["do"], ["nothing"]),
        "an exception": split(["do"], ["raise"]),
    },
}
TABLES = {
    "days": {
        "dates in CSV": b"when,name\n2013-07-01,a\n",
        "no column of dates in CSV": b"name\na\n",
    },
    "knn": {
        "a CSV": b"a,b,c\n1,2,3\n",
        "a CSV with a text": b"a,b,c\n1,two,3\n",
        "an empty CSV": b"",
        "a CSV that is no UTF-8": b"a,b,c\n\xff,2,3\n",
    },
    "anything": {
        "no signature, CSV": b"x,y\n1,a\n",
    },
}
CASES = [
    ("dates in Parquet", "days", PARQUET, parquet(when=[pd.Timestamp("2013-07-01")], name=["a"])),
    ("Parquet", "knn", PARQUET, parquet(a=[1.0], b=[2.0], c=[3.0])),
    ("another content type", "days", "text/plain", b"x"),
    ("charset", "days", JSON + "; charset=utf-8", split(DAYS, ["2013-07-01", "a"])),
    ("charset latin-1", "days", JSON + "; charset=latin-1", split(DAYS, ["2013-07-01", "a"])),
    (
        "a parameter of the type",
        "days",
        JSON + "; format=pandas-split",
        split(DAYS, ["2013-07-01", "a"]),
    ),
]
for content_type, by_model in ((JSON, DOCUMENTS), (CSV, TABLES)):
    for model, bodies in by_model.items():
        CASES += [(name, model, content_type, body) for name, body in bodies.items()]
DIFFERENT = {
    ("its reader of CSV takes no dates", 400, 200): ["dates in CSV"],
    ("it reads all dates in the form of the first one", 400, 200): ["dates"],
    ("it guesses whether the day comes first", 200, 400): ["a date of America"],
    ("it decodes other characters to nothing", 200, 400): ["no base64"],
    ("it reads nanoseconds, where pandas writes milliseconds", 200, 400): ["a number for a date"],
}
EXPECTED = {name: key[1:] for key, names in DIFFERENT.items() for name in names}


@pytest.mark.parametrize(("name", "model", "content_type", "content"), CASES)
@pytest.mark.filterwarnings("ignore")  # pandas, numpy and MLflow warn about these inputs.
def test_same_body_has_the_same_answer(name, model, content_type, content, ask_mlflow, ask_ours):
    status, theirs = ask_mlflow(model, content_type, content)
    our_status, ours = ask_ours(model, content_type, content)

    assert (status, our_status) == EXPECTED.get(name, (status, status)), (theirs[:300], ours[:300])
    if our_status != 200:
        message = json.loads(ours)["message"]
        assert 0 < len(message) < 600
        assert not any(part in message for part in ("\n", "Traceback", "/usr/"))
    if status == our_status == 200:
        assert json.loads(ours) == json.loads(theirs, parse_constant=lambda word: None)
