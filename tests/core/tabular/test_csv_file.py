"""Records of CSV files with their positions, and records that are not valid CSV."""

import io

import pytest

from mlflow_deploy_plugin.core.tabular.csv_file import csv_records


def test_record_has_line_bytes_and_position():
    text = b'\xef\xbb\xbfa,b\r\n\r\n1,"two\nlines"\n   \n3,\xff'
    records = list(csv_records(io.BytesIO(text)))
    assert [(record.line, record.fields) for record in records] == [
        (1, ["a", "b"]),
        (3, ["1", "two\nlines"]),
        (6, ["3", "\udcff"]),
    ]
    assert [record.raw for record in records] == [
        b"\xef\xbb\xbfa,b\r\n",
        b'1,"two\nlines"\n',
        b"3,\xff\n",
    ]
    assert records[-1].position == len(text)


def test_carriage_return_ends_a_line():
    records = list(csv_records(io.BytesIO(b"a,b\r1,2\r3,4\r,")))
    assert [(record.line, record.fields) for record in records] == [
        (1, ["a", "b"]),
        (2, ["1", "2"]),
        (3, ["3", "4"]),
        (4, ["", ""]),
    ]


def test_invalid_record_has_an_error():
    records = list(csv_records(io.BytesIO(b'a\n"x"y\nz\n')))
    assert [record.error.partition(";")[0] for record in records] == [
        "",
        "',' expected after '\"'",
        "",
    ]
    assert records[-1].fields == ["z"]


@pytest.mark.parametrize(
    "after", [b"2,y\n3,z\n", b'2,"y"\n3,z\n', b'2,"y\n3,z', b"2,y\n" * 100_000]
)
def test_unclosed_quote_affects_one_line(after):
    text = b'a,b\n1,"x\n' + after

    records = list(csv_records(io.BytesIO(text)))

    wrong = [record for record in records if record.error]
    assert wrong[0].line == 2
    assert wrong[0].raw == b'1,"x\n'
    assert wrong[0].position == 9
    assert [record.line for record in records] == list(
        range(1, text.count(b"\n") + (text[-1:] != b"\n") + 1)
    )
    assert records[-1].position == len(text)


def test_quoted_empty_text_is_a_record():
    records = list(csv_records(io.BytesIO(b'a\n""\n  \n1\n')))
    assert [record.fields for record in records] == [["a"], [""], ["1"]]
