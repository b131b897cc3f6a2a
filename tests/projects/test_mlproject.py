"""Tests that MLflow can read the MLproject files, and that their parameters are the
options of the modules.
"""

import argparse
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from mlflow.projects._project_spec import load_project
from mlflow.utils.environment import _PythonEnv

ROOT = Path(__file__).parents[2]
PROJECTS = sorted(
    {path.parent for path in ROOT.glob("projects/*/MLproject")}
    - {ROOT / "projects" / "model_repository"}
)
"""The folders with an MLproject. `model_repository` is an example of another repository
(tests/ci).
"""
ENTRY_POINTS = [
    pytest.param(folder, name, id=name)
    for folder in (ROOT, *PROJECTS)
    for name in yaml.safe_load((folder / "MLproject").read_text())["entry_points"]
]
NEED_TORCH = ("train_digits", "image_resnet18", "prune")


class Parsed(Exception):
    """Ends a module after it has parsed its options."""

    def __init__(self, options, defaults):
        super().__init__(options)
        self.options = options
        self.defaults = defaults


def parameters(folder, name):
    document = yaml.safe_load((folder / "MLproject").read_text())
    return dict(document["entry_points"][name]["parameters"])


def words(folder, name):
    """Return the command that MLflow makes from the defaults, without the words that
    start the module.
    """
    command = shlex.split(
        load_project(str(folder)).get_entry_point(name).compute_command({}, storage_dir=None)
    )
    assert command[:2] == (["python", "-m"] if folder == ROOT else ["python", "../run.py"])
    return command[2:]


def test_conda_and_python_env_are_equal():
    conda = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml")
    python = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert conda.build_dependencies == python.build_dependencies
    assert conda.dependencies == python.dependencies


@pytest.mark.parametrize(
    ("folder", "name"), [entry for entry in ENTRY_POINTS if entry.id != "batch"]
)
def test_entry_point_parameters_match_module_options(folder, name, monkeypatch):
    if name in NEED_TORCH:
        pytest.importorskip("torch")
    module, *arguments = words(folder, name)
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser):
        raise Parsed(vars(parse(parser, arguments)), vars(parse(parser, [])))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    with pytest.raises(Parsed) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.options == ended.value.defaults
    declared = set(parameters(folder, name))
    if module.endswith(".train"):
        assert declared == set(ended.value.options)
    else:
        assert declared <= set(ended.value.options)
    assert {argument for argument in arguments if argument.startswith("--")} == {
        f"--{parameter.replace('_', '-')}" for parameter in declared
    }
