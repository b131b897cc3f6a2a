"""The results of conversions in the state folder, and the ONNX forms in the cache."""

import os

import joblib
import pytest

from mlflow_deploy_plugin.core.mlmodel import MLMODEL
from mlflow_deploy_plugin.core.statedir.files import read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import Conversion, FetchedVersion
from mlflow_deploy_plugin.serve.agent.fetch import ModelCache
from mlflow_deploy_plugin.serve.agent.forms import CONVERTED, FORM, Forms
from tests.support.fake_registry import AtOnce, Later


class Killed:
    def __reduce__(self):
        return os.abort, ()


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the forms of a server, like an agent."""

    def start(pool):
        return Forms(tmp_path / "state", ModelCache(tmp_path / "cache", tmp_path / "state"), pool)

    (tmp_path / "state").mkdir()
    return start


@pytest.fixture
def version(tmp_path):
    aspects = {"flavor": "python_function"}
    folder = tmp_path / "original"
    return FetchedVersion(
        model="m", version="1", folder=folder, aspects=aspects, rows="example", content="c"
    )


@pytest.fixture
def result(start, version, tmp_path):
    """Return the file of the result of the version."""
    start(Later()).refuse(version, "no")
    (file,) = (tmp_path / "state" / CONVERTED).glob("*.json")
    return file


def test_form_changed_in_the_cache_is_converted_again(start, version, result, make_model, tmp_path):
    folder = start(Later()).cache.keep(make_model(tmp_path / "draft"))
    write_state(result, Conversion(digest=folder.name, proof="proven"))
    best = start(Later()).best(version, "example")
    assert (best.aspects[FORM], best.folder) == ("converted", folder)
    (folder / MLMODEL).write_text("flavors: {onnx: [}")
    pool = Later()
    forms = start(pool)
    for _ in range(3):
        best = forms.best(version, "example")
        assert (best.aspects[FORM], best.folder) == ("converting", version.folder)
    assert (len(pool.waiting), folder.exists()) == (1, False)


@pytest.mark.parametrize(
    ("attempts", "form", "conversions"),
    [(0, "original", 0), (2, "converting", 1), (3, "original", 0)],
)
def test_conversion_without_a_result_is_tried_again(
    start, version, result, attempts, form, conversions
):
    write_state(result, Conversion(reason="it was killed by SIGKILL", attempts=attempts))
    pool = Later()
    best = start(pool).best(version, "example")
    assert (best.aspects[FORM], len(pool.waiting)) == (form, conversions)


@pytest.mark.long
def test_killed_conversion_is_counted(start, version, result, tmp_path):
    result.unlink()
    version.folder.mkdir()
    joblib.dump(Killed(), version.folder / "model.joblib")
    flavor = "sklearn: {serialization_format: joblib, pickled_model: model.joblib}"
    (version.folder / MLMODEL).write_text(f"flavors: {{{flavor}}}")
    forms = start(AtOnce())
    permitted = version.model_copy(update={"runs_code": True})
    assert forms.best(permitted, "example").aspects[FORM] == "converting"
    assert forms.best(permitted, "example").aspects[FORM] == "original"
    stored = read_state(result, Conversion)
    assert stored is not None
    assert (stored.attempts, "SIGABRT" in stored.reason) == (1, True)
