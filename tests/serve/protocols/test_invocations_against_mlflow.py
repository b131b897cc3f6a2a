"""`/invocations` answers as MLflow's own scoring server does: both receive the same
bytes, case by case.

Predictions must be equal, including types, with floats within 1e-5; for refusals, the
statuses must be equal. Intended differences are in `DIFFERENT` with both statuses. An
entry that no longer differs fails.
"""

import json

import pytest

from tests.support.invocations import CASES

DIFFERENT = {
    ("it crashes", 500, 415): ["no content type"],
    ("a table is sent as Arrow", 400, 415): ["Parquet"],
    (
        "names of media types and of parameters have no case, and values may be quoted (RFC 9110)",
        415,
        200,
    ): [
        "charset utf8",
        "charset in quotes",
        "a semicolon at the end",
        "upper case",
    ],
    ("JSON is UTF-8 (RFC 8259), and the header says so", 200, 400): ["UTF-16"],
    ("CSV may say whether it has a header (RFC 4180), as SageMaker's clients do", 415, 200): [
        "CSV with a header parameter"
    ],
    ("rows without names are in the signature's order, as in TensorFlow Serving", 400, 200): [
        "split without columns",
        "instances of rows",
        "inputs of rows",
    ],
    ("the only tensor may be called anything, and be given in every form", 400, 200): [
        "inputs by any name for a tensor without one",
        "a tensor by its name",
        "instances of records for a tensor",
        "a tensor in a table",
        "CSV for a tensor",
        "CSV of integers for a tensor",
    ],
    ("pandas writes rows as lists", 200, 400): ["split with data that is an object"],
    ("it drops what is no object", 200, 400): ["params that are a list"],
    ("a value is not repeated for rows that have none", 200, 400): ["a scalar beside columns"],
    ("it cuts fractions off", 200, 400): [
        "a fraction in a long column",
        "a fraction in an integer tensor",
    ],
    ("it makes true of anything but 0, the text 'false' too, and false of null", 200, 400): [
        "a number in a boolean column",
        "a text in a boolean column",
        "null in a boolean column",
    ],
    ("a boolean is no number, a text neither, and a number no text", 200, 400): [
        "a boolean in a double column",
        "a number as text in a double column",
        "a number in a text column",
        "a tensor of texts",
        "a tensor of booleans",
    ],
    ("it computes with another number than was sent", 200, 400): [
        "an integer beyond 64 bits in a long column",
        "a number beyond 32 bits in a tensor",
    ],
    ("it flattens an output of several values a row into more rows than it was given", 200, 200): [
        "stock, several values a row",
        "stock without a signature, several values a row in a table",
    ],
    ("rows whose outputs are of different widths are no table", 400, 200): [
        "stock, outputs of different widths",
        "stock without a signature, outputs of different widths in a table",
    ],
    ("nobody knows which of the two is meant", 200, 400): ["CSV with a column twice"],
    ("pandas makes the first column an index and shifts the others", 200, 400): [
        "CSV with a row too long"
    ],
    ("a space beside true is no other value, as beside a number", 400, 200): [
        "CSV with spaces around true"
    ],
}
EXPECTED = {name: key[1:] for key, names in DIFFERENT.items() for name in names}


@pytest.mark.parametrize(("name", "model", "body", "content_type"), CASES)
@pytest.mark.filterwarnings("ignore")  # pandas, numpy and MLflow warn about the invalid inputs.
def test_bodies_are_answered_as_by_mlflow(name, model, body, content_type, ask_mlflow, ask_ours):
    status, theirs = ask_mlflow(model, "POST", "/invocations", content_type, body)
    our_status, ours = ask_ours(model, "POST", "/invocations", content_type, body)

    assert (status, our_status) == EXPECTED.get(name, (status, status)), (theirs[:500], ours[:500])
    if our_status != 200:
        assert json.loads(ours).keys() == {"error_code", "message"}
    if status == 400:
        assert json.loads(theirs).keys() >= {"error_code", "message"}
    if status == our_status == 200:
        assert is_same(json.loads(theirs), json.loads(ours)) == (name not in EXPECTED), (
            theirs[:500],
            ours[:500],
        )


def is_same(one, other):
    """Return True if two JSON values are equal: keys in any order, floats
    approximately, integers not as floats.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if type(one) is float and type(other) is float:
        return one == pytest.approx(other, rel=1e-5, abs=1e-5)
    return type(one) is type(other) and bool(one == other)


def test_all_differences_are_cases():
    names = [parameters.values[0] for parameters in CASES]
    assert len(set(names)) == len(names)
    assert EXPECTED.keys() <= set(names)


@pytest.mark.parametrize(
    ("method", "path", "is_same_body"),
    [
        ("GET", "/ping", True),
        ("GET", "/health", False),  # Our response is JSON, with the matching content type.
        ("GET", "/version", True),
        ("POST", "/ping", False),  # Our errors have another form.
        ("GET", "/invocations", False),
        ("PUT", "/invocations", False),
        ("GET", "/invocation", False),
    ],
)
def test_other_routes_have_mlflow_status(method, path, is_same_body, ask_mlflow, ask_ours):
    status, theirs = ask_mlflow("regressor", method, path)
    our_status, ours = ask_ours("regressor", method, path)
    assert our_status == status
    assert ours == theirs or not is_same_body
