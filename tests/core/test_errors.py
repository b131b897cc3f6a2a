"""The tree of errors is complete, documented, and uses MLflow's error codes."""

import re

import pytest
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.errors import OnnxserveError


def tree(root):
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


OURS = [error for error in tree(OnnxserveError) if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.__name__)
def test_error_has_status_and_mlflow_code(error):
    raised = error("what was wrong")

    assert str(raised) == raised.message == "what was wrong"
    assert 400 <= error.http_status < 600
    assert ErrorCode.Name(ErrorCode.Value(error.error_code)) == error.error_code
    assert error.__doc__


def test_docstring_draws_the_tree():
    drawn = re.findall(
        r"^ {4}[│├└─ ]*([A-Z]\w+)(?: +(\d{3}) +([A-Z_]+))?", errors.__doc__ or "", re.MULTILINE
    )

    assert {name for name, *_ in drawn} ^ {error.__name__ for error in OURS} == set(), (
        "the docstring draws the tree"
    )
    for name, status, code in drawn:
        if status:
            error = getattr(errors, name)
            assert error.http_status == int(status)
            assert error.error_code == code


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, errors.InvalidRequest),
        (403, errors.ScopeMissing),
        (415, errors.UnsupportedMediaType),
        (501, errors.NotInstalled),
        (503, errors.NotReady),
        (500, OnnxserveError),
        (502, OnnxserveError),
    ],
)
def test_status_maps_to_most_general_error(status, error):
    assert errors.error_of_status(status) is error
