"""The additions of the side process to MLflow's answers: arrays for the log, named
arrays, and errors.
"""

import io
import json
import logging
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, Schema
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import InferenceError, InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.protocols.v2_tensors import to_binary
from mlflow_deploy_plugin.serve.pyfunc.scorer import NotRepresentable, Scorer, to_texts
from mlflow_deploy_plugin.serve.runtime.feeds import object_array
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from tests.support.bodies import v2_tensor
from tests.support.refusals import mentions
from tests.support.tables import columns_of

JSON = "application/json"


def records(*rows):
    return json.dumps({"dataframe_records": rows}).encode()


def invoke(scorer, document):
    return scorer.invoke(JSON, json.dumps(document).encode())


def values(arrays):
    return {name: array.tolist() for name, array in arrays.items()}


def saved_sklearn(folder, model, example, labels, schema=None):
    signature = mlflow.models.infer_signature(example, np.array(labels))
    mlflow.sklearn.save_model(
        model,
        folder,
        signature=ModelSignature(schema) if schema else signature,
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    return Scorer.load(folder)


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """Models of strings by the missing value in training. Each model is compared with
    `load_model`.
    """

    def encoder():
        return OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1, max_categories=3
        )

    imputer = SimpleImputer(missing_values=None, strategy="constant", fill_value="Rom")
    cases = {
        "none": (encoder(), None),
        "nan": (encoder(), np.nan),
        "imputed": (make_pipeline(imputer, encoder()), None),
    }
    example = pd.DataFrame({"city": ["Bern"], "land": ["CH"]})
    scorers = {}
    for name, (encoded, missing) in cases.items():
        cities = ["Bern", "Bern", "Rom", missing, missing]
        table = pd.DataFrame({"city": cities, "land": ["CH"] * 5}, dtype=object)
        labels = ["north", "north", "south"] + ["south" if name == "imputed" else "none"] * 2
        tree = DecisionTreeClassifier(random_state=0)
        model = make_pipeline(make_column_transformer((encoded, ["city"])), tree).fit(table, labels)
        folder = tmp_path_factory.mktemp("towns") / name
        scorers[name] = saved_sklearn(folder, model, example, ["north"])
        assert mlflow.pyfunc.load_model(str(folder)).predict(table).tolist() == labels
    return scorers


def as_csv(rows):
    lines = [
        ",".join(rows[0]),
        *(",".join(f'"{text}"' if text else "" for text in row.values()) for row in rows),
    ]
    return "\n".join(lines).encode()


def answer(arrays):
    return SideMessage("answer", arrays={"outputs": arrays})


ROUTES = {
    "records": lambda scorer, rows: scorer.invoke(JSON, records(*rows)),
    "inputs by row": lambda scorer, rows: invoke(scorer, {"inputs": rows}),
    "instances": lambda scorer, rows: invoke(scorer, {"instances": rows}),
    "inputs by column": lambda scorer, rows: invoke(scorer, {"inputs": columns_of(rows)}),
    "CSV": lambda scorer, rows: scorer.invoke("text/csv", as_csv(rows)),
    "named arrays": lambda scorer, rows: scorer.predict(
        {name: object_array(texts) for name, texts in columns_of(rows).items()}
    ),
    "a frame of batch": lambda scorer, rows: answer(scorer.outputs_of(pd.DataFrame(rows))),
}
"""The ways to pass rows of strings to a model, with its answer as named arrays."""


def test_body_is_logged_as_signature_columns(scorers):
    body = records({"when": "2013-07-01", "name": "a", "more": 3})
    arrays = scorers["days"].invoke(JSON, body).arrays
    assert values(arrays["feeds"]) == {"when": ["2013-07-01T00:00:00"], "name": ["a"]}
    assert values(arrays["outputs"]) == {"day": [183], "name": ["A"]}
    feeds = scorers["bytes"].invoke(JSON, records({"blob": "AAE="})).arrays["feeds"]
    assert values(feeds) == {"blob": ["AAE="]}
    feeds = invoke(scorers["tensors"], {"inputs": {"a": [[1, 2]], "b": [3]}}).arrays["feeds"]
    assert values(feeds) == {"a": [[1.0, 2.0]], "b": [3]}


LARGEST = 2**63 - 1
DAY = {"when": "2013-07-01", "name": "a"}
SPLIT = {
    "columns": ["when", "id", "name"],
    "data": [["2013-07-01", LARGEST, "a"], ["2013-07-01", None, "a"]],
}


@pytest.mark.parametrize(
    ("model", "content_type", "body", "expected"),
    [
        ("days", JSON, records({"id": LARGEST, **DAY}, DAY), [LARGEST, None]),
        ("days", JSON, json.dumps({"dataframe_split": SPLIT}).encode(), [LARGEST, None]),
        (
            "days",
            JSON,
            json.dumps({"inputs": {"id": ["x"], "when": ["2013-07-01"], "name": ["a"]}}).encode(),
            ["x"],
        ),
        ("days", "text/csv", b"when,id,name\n2013-07-01,007,a\n2013-07-01,,a\n", ["007", None]),
        ("anything", JSON, records({"id": 7, "x": 1.5}), [7]),
        ("anything", "text/csv", b"id,x\n007,1.5\n", ["007"]),
        ("tensors", JSON, b'{"inputs": {"a": [[1, 2]], "b": [3], "id": [7]}}', [7]),
    ],
)
def test_key_is_kept_from_the_model(scorers, model, content_type, body, expected):
    answer = scorers[model].invoke(content_type, body, keys=["id", "other"])
    assert values(answer.arrays["keys"]) == {"id": expected}
    assert "id" not in values(answer.arrays["feeds"])
    assert b'"id"' not in answer.body


def test_list_as_a_key_is_refused(scorers):
    with pytest.raises(SchemaMismatch, match="'id', row 0"):
        scorers["days"].invoke(JSON, records({"id": [1], **DAY}), keys=["id"])


@pytest.mark.parametrize("number", [1372723200000, 20130702, 2013])
def test_number_is_refused_as_a_date(scorers, number):
    """`DataFrame.to_json()` writes milliseconds, which MLflow reads as nanoseconds."""
    for document in (
        {"inputs": {"when": [number], "name": ["a"]}},
        {"dataframe_split": {"columns": ["when", "name"], "data": [[number, "a"]]}},
    ):
        with pytest.raises(InvalidRequest, match=rf"'when'.*row 0: {number} .*date_format='iso'"):
            invoke(scorers["days"], document)


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
def test_dates_are_parsed_separately(ask, scorers):
    texts = [
        "2024-01-02T04:00:00",
        "2024-01-03T04:00:00.500000",
        "2024-01-04T00:30+01:00",
        "2024-01-05",
        "20240106T04Z",
        "2024-01-07T01:00:00.000Z",
    ]
    rows = [{"when": text, "name": "a"} for text in texts]
    days = [3, 4, 4, 6, 7, 8]
    assert ask(scorers["days"], rows).arrays["outputs"]["day"].tolist() == days
    assert [ask(scorers["days"], [row]).arrays["outputs"]["day"].item() for row in rows] == days


NO_DATES = [
    "02/01/2024",
    "now",
    "04:00",
    "2024/01/02",
    " 2024-01-02",
    "NaT",
    "2024-02-30",
    "0001-01-01",
    "9999-12-31T00:00:00",
]


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("text", NO_DATES)
def test_text_without_a_date_is_refused(text, ask, scorers):
    for row, first in enumerate([[], [{"when": "2024-01-13", "name": "a"}]]):
        with pytest.raises(SchemaMismatch, match=rf"'when'.*row {row}: '{text}'.*8601"):
            ask(scorers["days"], [*first, {"when": text, "name": "a"}])


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("model", ["none", "nan", "imputed"])
def test_missing_text_matches_the_encoder(model, ask, towns):
    """Check that other rows of a request do not change None and NaN, which
    scikit-learn's encoders distinguish.
    """
    scorer = towns[model]
    expected = ["south" if model == "imputed" else "none", "north"]
    rows = [{"city": None, "land": "CH"}, {"city": "Bern", "land": "CH"}]
    assert ask(scorer, rows).arrays["outputs"]["prediction"].tolist() == expected
    assert [ask(scorer, [row]).arrays["outputs"]["prediction"].item() for row in rows] == expected


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
def test_python_model_receives_none_and_nat(ask, scorers):
    rows = [{"text": None, "when": "2024-01-02"}, {"text": "none", "when": None}]
    texts = ["None", "'none'"]
    dates = ["2024-01-02 00:00:00", "NaT"]
    for count in (1, 2):
        outputs = values(ask(scorers["gaps"], rows[:count]).arrays["outputs"])
        assert outputs == {"text": texts[:count], "when": dates[:count]}


@pytest.mark.parametrize(
    "fields",
    [
        {"categories_": None},
        {"categories_": [1, 2]},
        {"feature_names_in_": None, "missing_values": None},
    ],
)
def test_estimator_with_encoder_attributes_is_served(fields, tmp_path):
    table = pd.DataFrame({"city": ["Bern", "Rom"]}, dtype=object)
    model = make_pipeline(OrdinalEncoder(), DecisionTreeClassifier()).fit(table, ["north", "south"])
    vars(model).update(fields)
    scorer = saved_sklearn(tmp_path / "model", model, table, ["north"])
    answer = scorer.invoke(JSON, records({"city": "Rom"}))
    assert answer.arrays["outputs"]["prediction"].tolist() == ["south"]


class Typed(PythonModel):
    """A model of one column that returns the representations of its values."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return list(map(repr, model_input["x"].tolist()))


GOOD = {
    "integer": 1,
    "long": 2**53 - 1,
    "float": 1.5,
    "double": 2.5,
    "boolean": True,
    "string": "a",
    "binary": "AAE=",
}
FORMS = {
    "split": lambda column: {
        "dataframe_split": {"columns": ["x"], "data": [[value] for value in column]}
    },
    "records": lambda column: {"dataframe_records": [{"x": value} for value in column]},
    "inputs": lambda column: {"inputs": {"x": column}},
    "instances": lambda column: {"instances": [{"x": value} for value in column]},
}


def saved_typed(folder, columns):
    signature = ModelSignature(Schema(columns))
    mlflow.pyfunc.save_model(folder, python_model=Typed(), signature=signature, pip_requirements=[])
    return Scorer.load(folder)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    root = tmp_path_factory.mktemp("typed")
    return {kind: saved_typed(root / kind, [ColSpec(kind, "x")]) for kind in GOOD}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("integer", 2**31),
        ("integer", -(2**31) - 1),
        ("integer", 1e19),
        ("integer", 3.5),
        ("integer", "4"),
        ("integer", True),
        ("integer", None),
        ("long", 2**63),
        ("long", 2**64 - 1),
        ("long", 1e19),
        ("float", 1e39),
        ("float", "1.5"),
        ("double", True),
        ("boolean", "false"),
        ("boolean", 1),
        ("boolean", None),
        ("string", 3.5),
        ("string", 10**30),
        ("string", True),
        ("string", ["a"]),
        ("binary", 3),
        ("binary", "%%"),
    ],
)
def test_value_of_another_type_is_refused(typed, kind, value, form):
    with pytest.raises(SchemaMismatch, match=r"^column 'x'.* row 1: ") as refusal:
        invoke(typed[kind], FORMS[form]([GOOD[kind], value]))
    assert refusal.value.column == "x"


@pytest.mark.parametrize("form", FORMS)
def test_number_beyond_floats_is_refused(typed, form):
    with pytest.raises(InvalidRequest):
        invoke(typed["double"], FORMS[form]([2.5, 10**400]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 3.0, "3"),
        ("long", 3.0, "3"),
        ("long", 2**63 - 1, "9223372036854775807"),
        ("float", 3, "3.0"),
        ("float", None, "nan"),
        ("double", 2**70, "1.1805916207174113e+21"),
        ("boolean", False, "False"),
        ("string", None, "None"),
        ("binary", "AAEC", repr(b"\x00\x01\x02")),
        ("binary", None, "None"),
    ],
)
def test_value_of_the_type_is_kept(typed, kind, value, expected, form):
    answer = invoke(typed[kind], FORMS[form]([GOOD[kind], value]))
    assert answer.arrays["outputs"]["prediction"].tolist()[1] == expected


@pytest.mark.parametrize("form", ["instances", "inputs", "dataframe_split"])
def test_fraction_is_refused_by_position(tmp_path, form):
    columns = [ColSpec("integer"), ColSpec("integer")]
    scorer = saved_typed(tmp_path / "model", columns)
    rows = [[1, 2], [1, 3.5]]
    content = {"data": rows} if form == "dataframe_split" else rows
    with pytest.raises(SchemaMismatch, match=r"column '1' \(integer\), row 1: 3.5;"):
        invoke(scorer, {form: content})


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [[1, 2.5], [2, None]]},
        {"inputs": [{"a": 1, "b": 2.5}, {"a": 2, "b": None}]},
        {"instances": [{"a": 1, "b": 2.5}, {"a": 2, "b": None}]},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2.5], [2, None]]}},
    ],
)
def test_columns_without_names_are_read_by_position(tmp_path, document):
    scorer = saved_sklearn(
        tmp_path / "model",
        make_pipeline(FunctionTransformer(), DecisionTreeClassifier()).fit(
            [[1, 2.5], [2, np.nan]], ["full", "empty"]
        ),
        np.array([[1, 2.5]]),
        ["full"],
        Schema([ColSpec("integer"), ColSpec("double")]),
    )
    assert json.loads(invoke(scorer, document).body) == {"predictions": ["full", "empty"]}


def test_instances_of_other_columns_are_refused(typed):
    with pytest.raises(SchemaMismatch, match="row 1"):
        invoke(typed["double"], {"instances": [{"x": 1.5}, {}]})


@pytest.mark.parametrize(("kind", "value"), [("integer", 2**31), ("float", 1e39)])
def test_number_beyond_32_bits_is_refused(typed, kind, value):
    with pytest.raises(SchemaMismatch, match=f"'x', row 1: .* does not fit the type {kind}"):
        typed[kind].invoke("text/csv", f"x\n1\n{value}\n".encode())


@pytest.mark.parametrize("name", ["when", "text"])
def test_duplicated_column_is_refused(scorers, name):
    split = {"columns": ["when", "text", name], "data": [["2024-01-02", "a", None]]}
    with pytest.raises(SchemaMismatch, match=f"'{name}'"):
        invoke(scorers["gaps"], {"dataframe_split": split})


def test_categories_of_parquet_are_texts(scorers):
    file = io.BytesIO()
    pd.DataFrame({"city": ["Bern", None]}, dtype="category").to_parquet(file)
    answer = scorers["cities"].invoke("application/vnd.apache.parquet", file.getvalue())
    assert json.loads(answer.body)["predictions"] == ["north", "none"]


def test_missing_column_hides_the_data(scorers):
    with pytest.raises(InvalidRequest) as refusal:
        scorers["days"].invoke(JSON, records({"name": "a secret"}))
    assert mentions(refusal.value.message, "['when']")


def test_objects_are_logged_as_json(scorers):
    row = {"points": [1.5, 2.0], "place": {"name": "Ö", "height": 2}, "tags": ["u", "v"]}
    other = {"points": [], "place": {"name": "x", "height": 3}, "tags": []}

    arrays = scorers["nested"].invoke(JSON, records(row, other)).arrays

    assert values(arrays["feeds"]) == {
        "points": ["[1.5,2.0]", "[]"],
        "place": ['{"name":"Ö","height":2}', '{"name":"x","height":3}'],
        "tags": ['["u","v"]', "[]"],
    }
    assert values(arrays["texts"]) == {
        "prediction": [
            '{"sum":3.5,"name":"Ö","tags":["u","v"]}',
            '{"sum":0,"name":"x","tags":[]}',
        ]
    }


def test_mapping_of_objects_is_one_row(scorers):
    row = {"points": [1.5, 2.0, 3.0], "place": {"name": "x", "height": 2}, "tags": ["u", "v"]}
    texts = invoke(scorers["nested"], {"inputs": row}).arrays["texts"]
    assert values(texts) == {"prediction": ['{"sum":6.5,"name":"x","tags":["u","v"]}']}


def test_named_outputs_keep_their_names():
    chat = {"id": "a", "choices": [{"message": {"content": "hi"}}], "created": 5}
    table = pd.DataFrame({"score": [0.5, 1.0], "why": [["x"], []]})

    assert values(to_texts(chat, 1, ["id", "choices", "created", "usage"])) == {
        "id": ["a"],
        "choices": ['[{"message":{"content":"hi"}}]'],
        "created": [5],
    }
    assert values(to_texts(table, 2, ["score", "why"])) == {
        "score": [0.5, 1.0],
        "why": ['["x"]', "[]"],
    }
    with pytest.raises(NotRepresentable, match="not contain score, why"):
        to_texts([[1]], 1, ["score", "why"])


def test_large_integers_are_logged_as_json(scorers):
    answer = scorers["troubled"].invoke(JSON, records({"do": "count"}))
    assert json.loads(answer.body) == {"predictions": [{"n": 2**70}]}
    assert values(answer.arrays["texts"]) == {"prediction": [f'{{"n":{2**70}}}']}


def test_uncaptured_inputs_are_logged_once(scorers, caplog):
    scorers["anything"]._has_warned = False
    with caplog.at_level(logging.WARNING, "mlflow_deploy_plugin.serve.pyfunc"):
        for _ in range(2):
            assert (
                not scorers["anything"].invoke(JSON, b'{"inputs": {"a": {"b": 1}}}').arrays["feeds"]
            )
    assert len([record for record in caplog.records if "not captured" in record.message]) == 1


def test_warm_up_returns_the_outputs(scorers):
    answered = scorers["knn"].warm_up()
    assert {name: (array.dtype, array.shape) for name, array in answered.items()} == {
        "prediction": (object, (0,))
    }
    assert scorers["days"].warm_up() == {}


@pytest.mark.parametrize(
    ("model", "feeds", "error", "cause"),
    [
        ("bytes", {"blob": ["%"]}, SchemaMismatch, "'blob' (binary), row 0: '%' is not base64"),
        ("troubled", {"do": ["raise"]}, InferenceError, "KeyError: 'no such thing"),
        ("troubled", {"do": ["panic"]}, InferenceError, "Panic: a regular"),
        ("troubled", {"do": ["point"]}, InferenceError, "as named arrays ("),
    ],
)
def test_refusal_names_the_cause(scorers, model, feeds, error, cause):
    with pytest.raises(error, match=re.escape(cause)) as caught:
        scorers[model].predict({name: np.array(texts, object) for name, texts in feeds.items()})
    assert type(caught.value) is error
    assert "/usr" not in caught.value.message


def test_answer_without_json_is_an_inference_error(scorers):
    with pytest.raises(InferenceError, match="JSON: TypeError"):
        scorers["troubled"].invoke(JSON, records({"do": "point"}))


@pytest.mark.parametrize(
    ("rows", "row", "value"),
    [
        ([4, 5], 0, "4"),
        ([None, 2.5], 1, "2.5"),
        (["Bern", None, True], 2, "true"),
        (["Bern", {"q": 1}], 1, "{'q': 1}"),
    ],
)
def test_non_string_is_named_with_its_row(towns, rows, row, value):
    message = rf"column 'city' \(string\), row {row}: {re.escape(value)}; a string is expected$"
    with pytest.raises(SchemaMismatch, match=message):
        towns["none"].invoke(JSON, records(*({"city": city, "land": "CH"} for city in rows)))
    table = pd.DataFrame({"city": rows, "land": "CH"}).convert_dtypes(convert_string=False)
    with pytest.raises(SchemaMismatch, match=message):
        towns["none"].outputs_of(table)


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_separator_other_than_comma_is_named(towns, mark, name):
    body = "city,land\r\nBern,CH\r\n"
    assert json.loads(towns["none"].invoke("text/csv", body.encode()).body) == {
        "predictions": ["north"]
    }
    with pytest.raises(SchemaMismatch, match=f"with {name}: .* commas"):
        towns["none"].invoke("text/csv", body.replace(",", mark).encode())


@pytest.fixture(scope="module")
def infer(scorers, pyfunc_folders):
    """Return the outputs of a model for a body of V2, as a server and its side process
    compute them.
    """

    def infer(model, body, **headers):
        artifact = read_served_artifact(pyfunc_folders[model])
        feeds = v2.decode(headers, body, artifact, pyfunc_schema(artifact), v2.OWN).feeds
        return values(scorers[model].predict(feeds).arrays["outputs"])

    return infer


@pytest.mark.parametrize("parameters", [{}, {"content_type": "base64"}])
def test_v2_accepts_base64(infer, parameters):
    blob = v2_tensor("blob", "BYTES", ["/9j/", "iVBORw=="], [2, 1]) | {"parameters": parameters}
    answer = infer("bytes", json.dumps({"inputs": [blob]}).encode())
    assert answer == {"prediction": [3, 4]}


def test_v2_accepts_raw_bytes(infer):
    blobs = to_binary(np.array([b"\xff\xd8\xff", b"\x89PNG"], object))
    size = {"binary_data_size": len(blobs)}
    tensor = {"name": "blob", "shape": [2], "datatype": "BYTES", "parameters": size}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = {"inference-header-content-length": str(len(head))}
    assert infer("bytes", head + blobs, **length) == {"prediction": [3, 4]}


def test_named_tensors_are_answered(infer):
    inputs = [v2_tensor("a", "FP32", [1, 2, 3, 4], [2, 2]), v2_tensor("b", "INT64", [10, 20])]
    answer = infer("tensors", json.dumps({"inputs": inputs}).encode())
    assert answer == {"sum": [13.0, 27.0], "twice": [[2.0, 4.0], [6.0, 8.0]]}
