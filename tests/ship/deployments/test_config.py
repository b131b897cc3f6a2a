"""Tests of the user's configuration of an endpoint, and of the resulting spec."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.config import apply_flavor, configure
from tests.support.refusals import refused


def test_unknown_time_zone_is_refused_when_configured():
    spec = configure(
        new_endpoint("flights", "models:/X/1"), {"monitors.daily.time_zone": "Europe/Berlin"}
    )

    assert spec.monitors["daily"].time_zone == "Europe/Berlin"
    with refused(InvalidConfig, "time_zone", "'Europe/Berlinn'"):
        configure(spec, {"monitors.daily.time_zone": "Europe/Berlinn"})
    assert configure(spec, {"monitors.daily.time_zone": ""}).monitors["daily"].time_zone == "UTC"


@pytest.mark.parametrize("traffic", ["flights=100", {}, 7])
def test_invalid_traffic_is_refused(traffic):
    with refused(InvalidConfig, "traffic", "-C traffic.NAME=WEIGHT"):
        configure(new_endpoint("flights", "models:/X/1"), {"traffic": traffic})


@pytest.mark.parametrize(
    ("flavor", "is_allowed", "convert"),
    [("python_function", True, "never"), ("onnx", False, "example")],
)
def test_flavor_of_a_followed_model_permits_pyfuncs(flavor, is_allowed, convert):
    assert apply_flavor("s", None, flavor, {"server.threads": 2}) == {
        "variants.s.allow_pyfunc": is_allowed,
        "variants.s.convert": convert,
        "server.threads": 2,
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MLproject").write_text(
        "name: toy\nentry_points:\n  train: {command: python train.py}\n"
    )
    return tmp_path


def with_project(project, **fields):
    config = {"monitors.m.kind": "drift", "monitors.m.retrain.project": project}
    config |= {f"monitors.m.retrain.{name}": value for name, value in fields.items()}
    return configure(new_endpoint("flights", "models:/X/1"), config)


def kept(spec):
    retrain = spec.monitors["m"].retrain
    assert retrain is not None
    return retrain.project


def test_project_folder_becomes_absolute(project):
    (project / "below").mkdir()
    (project / "MLproject").rename(project / "below" / "MLproject")
    assert kept(with_project("below")) == str(project / "below")
    assert kept(with_project(".#below")) == str(project / "below")


def test_project_repository_is_unchanged(project):
    for uri in ("https://git.example/x.git", "git@git.example:x.git#below"):
        assert kept(with_project(uri)) == uri


def test_missing_or_broken_project_is_refused(project):
    with refused(InvalidConfig, "monitors.m.retrain.project", f"{project}/elsewhere", "not exist"):
        with_project("elsewhere")
    with refused(InvalidConfig, "retrain.entry_point", "'trian'", "it has train"):
        with_project(".", entry_point="trian")
    (project / "MLproject").write_text("entry_points: [")
    with refused(InvalidConfig, "retrain.project", "MLproject", "cannot be read"):
        with_project(".")
    (project / "MLproject").unlink()
    with refused(InvalidConfig, "no MLproject", "an MLflow project"):
        with_project(".")


def test_other_changes_do_not_need_the_project(project):
    spec = with_project(".")
    (project / "MLproject").unlink()
    changed = configure(spec, {"monitors.m.retrain.max_runs": "3", "monitors.m.every": "2d"})
    assert kept(changed) == str(project)


def test_invalid_project_parameters_are_refused(project):
    declared = "{max_iter: {type: float, default: 60}, data: path, city: string}"
    (project / "MLproject").write_text(
        f"entry_points: {{train: {{parameters: {declared}, command: python train.py}}}}"
    )
    with refused(InvalidConfig, "retrain.parameters.max_itr", "'max_itr'", "max_iter, data, city"):
        with_project(".", **{"parameters.max_itr": "9", "parameters.city": "rome"})
    with refused(InvalidConfig, "parameters.city", "'train'", "no default"):
        with_project(".", **{"parameters.max_iter": "9"})
    # The retraining itself sets the parameter `data`.
    spec = with_project(".", **{"parameters.city": "rome"})
    with refused(InvalidConfig, "no parameter", "'town'"):
        configure(spec, {"monitors.m.retrain.parameters.town": "rome"})


def test_undeclared_parameters_accept_any(project):
    assert kept(with_project(".", **{"parameters.max_iter": "9"})) == str(project)
