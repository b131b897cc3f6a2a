from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import SimpleNamespace

import mlflow.sklearn
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.statedir.models import Conversion, FetchedVersion
from mlflow_deploy_plugin.serve.agent.fetch import ModelCache
from mlflow_deploy_plugin.serve.agent.forms import Forms
from tests.support.models import write_model
from tests.support.refusals import mentions

PYFUNC = {"flavor": "python_function"}


class Pool(Executor):
    """A pool whose conversions end when the test sets their results."""

    def __init__(self):
        self.futures = []

    def submit(self, fn, /, *args, **kwargs):
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def case(tmp_path):
    cache = ModelCache(tmp_path / "cache", tmp_path / "state")
    pool = Pool()
    return SimpleNamespace(
        cache=cache,
        pool=pool,
        state=tmp_path / "state",
        forms=Forms(tmp_path / "state", cache, pool),
    )


def version(tmp_path, *, rows="example", aspects=None, content="abc"):
    return FetchedVersion(
        model="churn",
        version="3",
        folder=tmp_path / "original",
        aspects=PYFUNC if aspects is None else aspects,
        rows=rows,
        content=content,
        digest="original",
        runs_code=True,
    )


@pytest.mark.parametrize(
    ("rows", "rule", "form"),
    [
        ("example", "never", "original"),
        ("example", "example", "converting"),
        ("made", "example", "original"),
        ("made", "always", "converting"),
        ("file", "never", "original"),
        ("file", "example", "converting"),
        ("", "always", "original"),
    ],
)
def test_rule_decides_which_versions_are_converted(rows, rule, form, case, tmp_path):
    best = case.forms.best(version(tmp_path, rows=rows), rule)
    assert (best.aspects["form"], best.digest) == (form, "original")
    assert len(case.pool.futures) == (form == "converting")
    case.forms.best(version(tmp_path, rows=rows), rule)
    assert len(case.pool.futures) == (form == "converting")


def test_wrapped_version_is_not_converted(case, tmp_path):
    best = case.forms.best(version(tmp_path, aspects={"flavor": "onnxserve"}), "always")
    assert best.aspects["form"] == "onnx"
    assert not case.pool.futures


def test_converted_form_has_a_digest_of_its_own(case, tmp_path):
    write_model(tmp_path / "onnx")
    kept = case.cache.keep(tmp_path / "onnx")
    original = version(tmp_path)
    case.forms.best(original, "example")
    case.pool.futures[0].set_result(Conversion(digest=kept.name, proof="proven"))
    best = case.forms.best(original, "example")
    assert (best.folder, best.digest, best.runs_code) == (kept, kept.name, False)
    assert best.original == original
    again = Forms(case.state, case.cache, case.pool).best(original, "example")
    assert again == best
    case.forms.refuse(original, "workers cannot load it")
    best = case.forms.best(original, "example")
    assert (best.aspects["form"], best.folder) == ("original", original.folder)


def test_failure_is_remembered_until_the_files_change(case, tmp_path):
    case.forms.best(version(tmp_path), "example")
    case.pool.futures[0].set_result(Conversion(reason="no such operator"))
    best = case.forms.best(version(tmp_path), "example")
    assert best.aspects["form_reason"] == "no such operator"
    case.forms.best(version(tmp_path, content="changed"), "example")
    assert len(case.pool.futures) == 2


def test_original_answers_if_its_onnx_form_differs(case, tmp_path):
    rows = np.arange(12.0).reshape(6, 2)
    model = LinearRegression().fit(rows, rows[:, 0])
    model.predict = lambda rows: rows[:, 0] + 1  # The converter reads the coefficients.
    original = version(tmp_path)
    mlflow.sklearn.save_model(
        model, original.folder, input_example=rows, serialization_format="cloudpickle"
    )
    content = hash_folder(original.folder)
    original = original.model_copy(update={"content": content})
    with ThreadPoolExecutor(1) as case.forms.pool:
        case.forms.best(original, "example")
    best = case.forms.best(original, "example")
    assert (best.aspects["form"], best.folder) == ("original", original.folder)
    assert mentions(best.aspects["form_reason"], "prediction", "tolerance", "original")
