"""Tests of the columns of a user's table and of the errors for unsuitable tables."""

import contextlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.house_price.train import generate as houses
from projects.tables import TableOptions, load_table, numbers, two_answers


def a_file(folder, text):
    (folder / "rows.csv").write_text(text)
    return TableOptions(data=str(folder / "rows.csv"), target="y")


def test_columns_are_typed(tmp_path, capsys):
    gaps = {0: "", 1: "inf", 9: "-1e300"}
    lines = [
        f"{i},{i},{gaps.get(i, i / 2)},{i % 2 == 0},{'ab'[i % 2] if i else ''},key {i},,{i}"
        for i in range(60)
    ]
    table = load_table(
        a_file(tmp_path, ",whole,gaps,flag,kind,key,none,y\n" + "\n".join(lines)), houses
    )
    assert list(table.features) == ["whole", "gaps", "flag", "kind"]
    assert table.features["gaps"].isna().sum() == 3
    assert table.features.dtypes["whole"] == table.features.dtypes["gaps"] == np.float64
    assert table.features.dtypes["flag"] == np.bool_
    assert set(table.features["kind"]) == {"a", "b", "missing"}
    assert capsys.readouterr().out.splitlines() == [
        "left out: column 0, which has no name",
        "left out: key, which has 60 different texts",
        "left out: none, which has no values",
    ]
    assert table.origin.startswith("rows.csv (SHA-256 ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TableOptions(data="rows.csv"), "data rows.csv: specify the column, target=COLUMN"),
        (
            TableOptions(data="none.csv", target="y"),
            "the file none.csv cannot be read: No such file or directory",
        ),
        (
            TableOptions(target="cost"),
            "target cost: the target of the synthetic rows is price; for a file, set data=FILE.csv",
        ),
    ],
)
def test_missing_file_or_target_is_named(options, said):
    with pytest.raises(InvalidConfig, match=said):
        load_table(options, houses)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"rows\.csv is not CSV with a header: No columns to parse"),
        ("a,b\n1,2\n1,2,3,4\n", r"rows\.csv is not CSV with a header: Error tokenizing data"),
        ("a,b\n1,2\n", r"rows\.csv has no column 'y'; it has a, b"),
        ("a,y\n" + "1,2\n" * 20, r"20 rows with a y; at least 50 are needed"),
        ("y\n" + "2\n" * 60, r"no column except y can be used as a feature"),
    ],
)
def test_unsuitable_file_is_refused(tmp_path, text, said):
    with pytest.raises(InvalidConfig, match=said):
        load_table(a_file(tmp_path, text), houses)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(),
        st.text("ay1.,\n\"'e-#\0é", max_size=300).map(lambda text: b"a,y\n" + text.encode()),
    )
)
def test_any_file_is_read_or_refused(tmp_path, content):
    (tmp_path / "rows.csv").write_bytes(content)
    with contextlib.suppress(InvalidConfig):
        load_table(TableOptions(data=str(tmp_path / "rows.csv"), target="y"), houses)


def test_target_of_wrong_kind_is_refused():
    with pytest.raises(InvalidConfig, match=r"target y: 'far'.*3\.4e\+38"):
        numbers(pd.Series(["1", "far"], name="y"))
    with pytest.raises(InvalidConfig, match=r"10 rows.*a \(40\), b \(9\)"):
        two_answers(pd.Series(["a"] * 40 + ["b"] * 9, name="y"))
    with pytest.raises(InvalidConfig, match=r"0 \(20\), 1 \(20\), 2.*\(20\)"):
        two_answers(pd.Series([0, 1, 2] * 20, name="y"))
