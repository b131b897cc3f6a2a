"""The additions of the side process to MLflow's answers: arrays for the log, named
arrays, and errors.
"""

import io
import json
import logging
import re
from collections.abc import Callable
from typing import Any

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
from sklearn.preprocessing import OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier

from mlflow_deploy_plugin.core.errors import InferenceError, InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.serve.protocols.side_messages import SideMessage
from mlflow_deploy_plugin.serve.pyfunc.scorer import NotRepresentable, Scorer, to_texts
from mlflow_deploy_plugin.serve.runtime.feeds import object_array
from tests.support.refusals import mentions
from tests.support.tables import columns_of

JSON = "application/json"
Rows = list[dict[str, Any]]


def records(*rows):
    return json.dumps({"dataframe_records": rows}).encode()


def invoke(scorer, document):
    return scorer.invoke(JSON, json.dumps(document).encode())


def values(arrays):
    return {name: array.tolist() for name, array in arrays.items()}


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
        "none": (make_column_transformer((encoder(), ["city"])), None),
        "nan": (make_column_transformer((encoder(), ["city"])), np.nan),
        "imputed": (make_column_transformer((make_pipeline(imputer, encoder()), ["city"])), None),
    }
    scorers = {}
    for name, (encoders, missing) in cases.items():
        table = pd.DataFrame(
            {"city": ["Bern", "Bern", "Rom", missing, missing], "land": ["CH"] * 5}, dtype=object
        )
        labels = ["north", "north", "south"] + ["south" if name == "imputed" else "none"] * 2
        model = make_pipeline(encoders, DecisionTreeClassifier(random_state=0)).fit(table, labels)
        folder = tmp_path_factory.mktemp("towns") / name
        signature = mlflow.models.infer_signature(
            pd.DataFrame({"city": ["Bern"], "land": ["CH"]}), np.array(["north"])
        )
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=signature,
            serialization_format="cloudpickle",
            pip_requirements=[],
        )
        assert mlflow.pyfunc.load_model(str(folder)).predict(table).tolist() == labels
        scorers[name] = Scorer.load(folder)
    return scorers


def as_csv(rows):
    lines = [
        ",".join(rows[0]),
        *(",".join(f'"{text}"' if text else "" for text in row.values()) for row in rows),
    ]
    return "\n".join(lines).encode()


def answer(arrays):
    return SideMessage("answer", arrays={"outputs": arrays})


ROUTES: dict[str, Callable[[Any, Rows], SideMessage]] = {
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


def test_a_body_is_kept_as_the_signatures_columns(scorers):
    arrays = (
        scorers["days"].invoke(JSON, records({"when": "2013-07-01", "name": "a", "more": 3})).arrays
    )
    assert values(arrays["feeds"]) == {"when": ["2013-07-01T00:00:00"], "name": ["a"]}
    assert values(arrays["outputs"]) == {"day": [183], "name": ["A"]}
    assert values(scorers["bytes"].invoke(JSON, records({"blob": "AAE="})).arrays["feeds"]) == {
        "blob": ["AAE="]
    }
    body = b'{"inputs": {"a": [[1, 2]], "b": [3]}}'
    assert values(scorers["tensors"].invoke(JSON, body).arrays["feeds"]) == {
        "a": [[1.0, 2.0]],
        "b": [3],
    }


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
def test_a_key_is_kept_and_the_model_does_not_see_it(scorers, model, content_type, body, expected):
    answer = scorers[model].invoke(content_type, body, keys=["id", "other"])
    assert values(answer.arrays["keys"]) == {"id": expected}
    assert "id" not in values(answer.arrays["feeds"])
    assert b'"id"' not in answer.body


def test_a_key_that_holds_a_list_is_refused(scorers):
    with pytest.raises(SchemaMismatch, match="'id', row 0"):
        scorers["days"].invoke(JSON, records({"id": [1], **DAY}), keys=["id"])


def test_dates_in_csv_are_read_as_in_json(scorers):
    as_json = scorers["days"].invoke(JSON, records({"when": "2013-07-02", "name": "a"}))
    as_csv = scorers["days"].invoke("text/csv; charset=utf-8", b"when,name\n2013-07-02,a\n")
    assert as_csv.body == as_json.body
    assert values(as_csv.arrays["feeds"]) == {"when": ["2013-07-02T00:00:00"], "name": ["a"]}
    with pytest.raises(InvalidRequest, match=r"'when' \(datetime\), row 0: 'yesterday'.*8601"):
        scorers["days"].invoke("text/csv", b"when,name\nyesterday,a\n")


def test_a_number_is_refused_as_a_date(scorers):
    """Check dates as numbers: `DataFrame.to_json()` writes milliseconds, which MLflow
    reads as nanoseconds (1970).
    """
    table = pd.DataFrame({"when": pd.to_datetime(["2013-07-02"]), "name": ["a"]})
    expected = scorers["days"].invoke(JSON, records({"when": "2013-07-02", "name": "a"})).body
    split = '{"dataframe_split": %s}'
    as_iso = table.to_json(orient="split", date_format="iso")
    in_milliseconds = table.assign(when=table["when"].astype("datetime64[ms]").astype("int64"))

    assert scorers["days"].invoke(JSON, (split % as_iso).encode()).body == expected
    with pytest.raises(InvalidRequest, match=r"'when'.*row 0: 1372723200000.*date_format='iso'"):
        scorers["days"].invoke(JSON, (split % in_milliseconds.to_json(orient="split")).encode())
    for number in (1372723200000, 20130702, 2013):
        with pytest.raises(InvalidRequest, match=rf"'when'.*row 0: {number} "):
            scorers["days"].invoke(JSON, b'{"inputs": {"when": [%d], "name": ["a"]}}' % number)


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
def test_each_date_of_a_column_is_read_by_itself(ask, scorers):
    texts = [
        "2024-01-02T04:00:00",
        "2024-01-03T04:00:00.500000",
        "2024-01-04T00:30+01:00",
        "2024-01-05",
        "20240106T04Z",
    ]
    rows = [{"when": text, "name": "a"} for text in texts]
    days = [3, 4, 4, 6, 7]
    assert ask(scorers["days"], rows).arrays["outputs"]["day"].tolist() == days
    assert [ask(scorers["days"], [row]).arrays["outputs"]["day"].item() for row in rows] == days


NO_DATES = [
    "02/01/2024",
    "now",
    "today",
    "04:00",
    "2024/01/02",
    " 2024-01-02",
    "NaT",
    "2024-02-30",
    "1500-01-01",
]


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("text", NO_DATES)
def test_a_text_that_is_not_a_date_in_iso_8601_is_refused_with_its_row(text, ask, scorers):
    for row, first in enumerate([[], [{"when": "2024-01-13", "name": "a"}]]):
        with pytest.raises(SchemaMismatch, match=rf"'when'.*row {row}: '{text}'.*8601"):
            ask(scorers["days"], [*first, {"when": text, "name": "a"}])


def test_dates_are_read_of_a_list_of_rows(scorers):
    answer = invoke(scorers["days"], {"inputs": [{"when": "2013-07-02", "name": "a"}]})
    assert answer.body == b'{"predictions": [{"day": 184, "name": "A"}]}'


@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31T00:00:00"])
def test_a_date_that_mlflow_has_no_nanoseconds_for_names_its_column(scorers, text):
    expected = rf"'when' \(datetime\), row 0: '{text}' .* from 1678 to 2261"
    with pytest.raises(InvalidRequest, match=expected):
        scorers["days"].invoke(JSON, records({"when": text, "name": "a"}))


def test_a_date_of_javascript_is_read_in_utc(scorers):
    arrays = (
        scorers["days"]
        .invoke(JSON, records({"when": "2013-07-02T01:00:00.000Z", "name": "a"}))
        .arrays
    )
    assert values(arrays["feeds"])["when"] == ["2013-07-02T01:00:00"]
    assert values(arrays["outputs"])["day"] == [184]


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("model", ["none", "nan", "imputed"])
def test_a_missing_text_is_the_one_that_the_encoder_has_learned(model, ask, towns):
    """Check that other rows of a request do not change None and NaN, which
    scikit-learn's encoders distinguish.
    """
    scorer = towns[model]
    expected = ["south" if model == "imputed" else "none", "north"]
    rows = [{"city": None, "land": "CH"}, {"city": "Bern", "land": "CH"}]
    assert ask(scorer, rows).arrays["outputs"]["prediction"].tolist() == expected
    assert [ask(scorer, [row]).arrays["outputs"]["prediction"].item() for row in rows] == expected


@pytest.mark.parametrize("ask", ROUTES.values(), ids=ROUTES.keys())
def test_a_missing_text_is_none_and_a_missing_date_nat_for_a_python_model(ask, scorers):
    rows = [{"text": None, "when": "2024-01-02"}, {"text": "none", "when": None}]
    outputs = values(ask(scorers["gaps"], rows).arrays["outputs"])
    assert outputs == {"text": ["None", "'none'"], "when": ["2024-01-02 00:00:00", "NaT"]}
    assert values(ask(scorers["gaps"], rows[:1]).arrays["outputs"]) == {
        "text": ["None"],
        "when": ["2024-01-02 00:00:00"],
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"categories_": None},
        {"categories_": [1, 2]},
        {"feature_names_in_": None, "missing_values": None},
    ],
)
def test_an_estimator_may_have_any_value_in_the_attributes_of_an_encoder(fields, tmp_path):
    table = pd.DataFrame({"city": ["Bern", "Rom"]}, dtype=object)
    model = make_pipeline(OrdinalEncoder(), DecisionTreeClassifier()).fit(table, ["north", "south"])
    vars(model).update(fields)
    mlflow.sklearn.save_model(
        model,
        tmp_path / "model",
        signature=mlflow.models.infer_signature(table, np.array(["north"])),
        serialization_format="cloudpickle",
        pip_requirements=[],
    )
    answer = Scorer.load(tmp_path / "model").invoke(JSON, records({"city": "Rom"}))
    assert answer.arrays["outputs"]["prediction"].tolist() == ["south"]


class Typed(PythonModel):
    """A model of one column that returns the representations of its values."""

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        return list(map(repr, model_input["x"].tolist()))


GOOD = {
    "integer": 1,
    "long": 2**63 - 1,
    "float": 1.5,
    "double": 2.5,
    "boolean": True,
    "string": "a",
    "binary": "AAE=",
}
FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "split": lambda column: {
        "dataframe_split": {"columns": ["x"], "data": [[value] for value in column]}
    },
    "records": lambda column: {"dataframe_records": [{"x": value} for value in column]},
    "inputs": lambda column: {"inputs": {"x": column}},
    "rows of inputs": lambda column: {"inputs": [{"x": value} for value in column]},
    "instances": lambda column: {"instances": [{"x": value} for value in column]},
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    root = tmp_path_factory.mktemp("typed")
    for kind in GOOD:
        mlflow.pyfunc.save_model(
            root / kind,
            python_model=Typed(),
            signature=ModelSignature(Schema([ColSpec(kind, "x")])),
            pip_requirements=[],
        )
    return {kind: Scorer.load(root / kind) for kind in GOOD}


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
        ("double", 10**400),
        ("double", True),
        ("boolean", "false"),
        ("boolean", 1),
        ("boolean", None),
        ("string", 3.5),
        ("string", True),
        ("string", ["a"]),
        ("binary", 3),
        ("binary", "%%"),
    ],
)
def test_a_value_of_another_type_is_refused_in_json(typed, kind, value, form):
    with pytest.raises(SchemaMismatch, match=r"^column 'x'.* row 1: ") as refusal:
        invoke(typed[kind], FORMS[form]([GOOD[kind], value]))
    assert refusal.value.column == "x"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 3.0, "3"),
        ("long", 3.0, "3"),
        ("float", 3, "3.0"),
        ("float", None, "nan"),
        ("double", 2**70, "1.1805916207174113e+21"),
        ("boolean", False, "False"),
        ("string", None, "None"),
        ("binary", "AAEC", repr(b"\x00\x01\x02")),
        ("binary", None, "None"),
    ],
)
def test_a_value_of_the_columns_type_is_kept_in_json(typed, kind, value, expected, form):
    answer = invoke(typed[kind], FORMS[form]([GOOD[kind], value]))
    assert answer.arrays["outputs"]["prediction"].tolist()[1] == expected


@pytest.mark.parametrize("form", ["instances", "inputs", "dataframe_split"])
def test_a_fraction_is_refused_by_position(tmp_path, form):
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=Typed(),
        signature=ModelSignature(Schema([ColSpec("integer"), ColSpec("integer")])),
        pip_requirements=[],
    )
    rows = [[1, 2], [1, 3.5]]
    content = {"data": rows} if form == "dataframe_split" else rows
    with pytest.raises(SchemaMismatch, match=r"column '1' \(integer\), row 1: 3.5;"):
        invoke(Scorer.load(tmp_path / "model"), {form: content})


@pytest.mark.parametrize(("kind", "value"), [("integer", 2**31), ("float", 1e39)])
def test_a_number_beyond_32_bits_is_refused_in_csv(typed, kind, value):
    with pytest.raises(SchemaMismatch, match=f"'x', row 1: .* does not fit the type {kind}"):
        typed[kind].invoke("text/csv", f"x\n1\n{value}\n".encode())


@pytest.mark.parametrize("name", ["when", "text"])
def test_a_date_or_a_text_that_stands_twice_is_refused_by_name(scorers, name):
    split = {"columns": ["when", "text", name], "data": [["2024-01-02", "a", None]]}
    with pytest.raises(SchemaMismatch, match=f"'{name}'"):
        invoke(scorers["gaps"], {"dataframe_split": split})


def test_categories_of_parquet_are_texts(scorers):
    file = io.BytesIO()
    pd.DataFrame({"city": ["Bern", None]}, dtype="category").to_parquet(file)
    answer = scorers["cities"].invoke("application/vnd.apache.parquet", file.getvalue())
    assert json.loads(answer.body)["predictions"] == ["north", "none"]


def test_a_missing_column_is_named_without_the_data(scorers):
    with pytest.raises(InvalidRequest) as refusal:
        scorers["days"].invoke(JSON, records({"name": "a secret"}))
    assert mentions(refusal.value.message, "['when']")


def test_objects_and_arrays_of_a_body_are_kept_as_json(scorers):
    row = {"points": [1.5, 2.0], "place": {"name": "Ö", "height": 2}, "tags": ["u", "v"]}
    changes = {"points": [], "place": {"name": "x", "height": 3}}

    arrays = (
        scorers["nested"]
        .invoke(JSON, records(row, row | {"tags": []}, row | changes | {"tags": ["w"]}))
        .arrays
    )

    assert values(arrays["feeds"]) == {
        "points": ["[1.5,2.0]", "[1.5,2.0]", "[]"],
        "place": ['{"name":"Ö","height":2}', '{"name":"Ö","height":2}', '{"name":"x","height":3}'],
        "tags": ['["u","v"]', "[]", '["w"]'],
    }
    assert values(arrays["texts"]) == {
        "prediction": [
            '{"sum":3.5,"name":"Ö","tags":["u","v"]}',
            '{"sum":3.5,"name":"Ö","tags":[]}',
            '{"sum":0,"name":"x","tags":["w"]}',
        ]
    }


def test_a_mapping_of_objects_and_arrays_is_one_row_as_mlflow_takes_it(scorers):
    row = {"points": [1.5, 2.0, 3.0], "place": {"name": "x", "height": 2}, "tags": ["u", "v"]}

    arrays = invoke(scorers["nested"], {"inputs": row}).arrays

    assert values(arrays["feeds"])["tags"] == ['["u","v"]']
    assert values(arrays["texts"]) == {"prediction": ['{"sum":6.5,"name":"x","tags":["u","v"]}']}


def test_an_answer_with_named_outputs_is_kept_by_their_names():
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


def test_integers_above_64_bits_are_logged_as_json(scorers):
    answer = scorers["troubled"].invoke(JSON, records({"do": "count"}))
    assert json.loads(answer.body) == {"predictions": [{"n": 2**70}]}
    assert values(answer.arrays["texts"]) == {"prediction": [f'{{"n":{2**70}}}']}


def test_inputs_that_cannot_be_captured_are_logged_once(scorers, caplog):
    scorers["anything"]._has_warned = False
    with caplog.at_level(logging.WARNING, "mlflow_deploy_plugin.serve.pyfunc"):
        for _ in range(2):
            assert (
                not scorers["anything"].invoke(JSON, b'{"inputs": {"a": {"b": 1}}}').arrays["feeds"]
            )
    assert len([record for record in caplog.records if "not captured" in record.message]) == 1


def test_named_arrays_come_back_for_named_arrays(scorers):
    feeds = {
        "when": np.array(["2013-07-01T02:00:00+02:00"], dtype=object),
        "name": np.array(["a"], dtype=object),
    }
    assert values(scorers["days"].predict(feeds).arrays["outputs"]) == {"day": [183], "name": ["A"]}
    blobs = {"blob": np.array(["AAEC", ""], dtype=object)}
    assert values(scorers["bytes"].predict(blobs).arrays["outputs"]) == {"prediction": [3, 0]}
    rows = {name: np.array([5.0, -5.0]) for name in "abc"}
    assert values(scorers["knn"].predict(rows).arrays["outputs"]) == {"prediction": ["up", "down"]}


def test_the_warm_up_says_the_outputs(scorers):
    answered = scorers["knn"].warm_up()
    assert {name: (array.dtype, array.shape) for name, array in answered.items()} == {
        "prediction": (object, (0,))
    }
    assert scorers["days"].warm_up() == {}


@pytest.mark.parametrize(
    ("model", "feeds", "error", "said"),
    [
        (
            "bytes",
            {"blob": ["%"]},
            SchemaMismatch,
            "column 'blob' (binary), row 0: '%' is not base64",
        ),
        (
            "troubled",
            {"do": ["raise"]},
            InferenceError,
            "the model cannot compute this input: KeyError: 'no such thing",
        ),
        (
            "troubled",
            {"do": ["panic"]},
            InferenceError,
            "the model cannot compute this input: Panic: a regular",
        ),
        (
            "troubled",
            {"do": ["point"]},
            InferenceError,
            "the answer cannot be represented as named arrays (",
        ),
    ],
)
def test_a_refusal_names_the_cause(scorers, model, feeds, error, said):
    with pytest.raises(error) as caught:
        scorers[model].predict(
            {name: np.array(texts, dtype=object) for name, texts in feeds.items()}
        )
    assert type(caught.value) is error
    assert said in caught.value.message
    assert "/usr" not in caught.value.message


def test_an_answer_that_json_cannot_hold_is_the_models_fault(scorers):
    with pytest.raises(InferenceError, match="JSON: TypeError"):
        scorers["troubled"].invoke(JSON, records({"do": "point"}))


@pytest.mark.parametrize(
    ("rows", "row", "value"),
    [
        ([4, 5], 0, "4"),
        ([None, 2.5], 1, "2.5"),
        ([True, False], 0, "true"),
        (["Bern", 5], 1, "5"),
        (["Bern", None, True], 2, "true"),
        (["Bern", {"q": 1}], 1, "{'q': 1}"),
    ],
)
def test_a_number_in_a_column_of_strings_is_named_with_its_column_and_row(towns, rows, row, value):
    body = records(*({"city": city, "land": "CH"} for city in rows))
    with pytest.raises(SchemaMismatch) as refusal:
        towns["none"].invoke(JSON, body)
    assert (
        refusal.value.message == f"column 'city' (string), row {row}: {value}; a string is expected"
    )
    assert refusal.value.column == "city"
    with pytest.raises(
        SchemaMismatch,
        match=rf"column 'city' \(string\), row {row}: {re.escape(value)}; a string is expected",
    ):
        towns["none"].outputs_of(
            pd.DataFrame({"city": rows, "land": "CH"}).convert_dtypes(convert_string=False)
        )


def test_an_integer_above_64_bits_is_refused_as_a_string(towns):
    with pytest.raises(
        SchemaMismatch, match=rf"column 'city' \(string\), row 0: {10**30}; a string is expected"
    ):
        towns["none"].invoke(JSON, records({"city": 10**30, "land": "CH"}))


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_another_separator_of_a_csv_is_named(towns, mark, name):
    body = "city,land\r\nBern,CH\r\n"
    assert json.loads(towns["none"].invoke("text/csv", body.encode()).body) == {
        "predictions": ["north"]
    }
    with pytest.raises(
        SchemaMismatch,
        match=f"the CSV separates its columns with {name}: separate them with commas",
    ):
        towns["none"].invoke("text/csv", body.replace(",", mark).encode())
