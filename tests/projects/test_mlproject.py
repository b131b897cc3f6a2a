"""Tests that MLflow can read MLproject and that both environment files are consistent."""

from pathlib import Path

import pytest
import yaml
from mlflow.projects._project_spec import load_project
from mlflow.utils.environment import _PythonEnv

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = tuple(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"])


def test_conda_yaml_and_python_env_yaml_are_equal() -> None:
    conda = _PythonEnv.from_conda_yaml(ROOT / "conda.yaml")
    python = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert conda.build_dependencies == python.build_dependencies
    assert conda.dependencies == python.dependencies


def test_the_project_has_its_entry_points_and_one_environment() -> None:
    project = load_project(str(ROOT))
    assert project.env_config_path == str(ROOT / "python_env.yaml")
    folders = {path.parent.name for path in ROOT.glob("projects/*/README.md")}
    assert folders | {"train", "train_digits", "evaluate", "deploy", "drift", "replay", "batch"} == set(ENTRY_POINTS)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_parameter_of_an_entry_point_has_a_type_a_default_and_a_description(name: str) -> None:
    document = yaml.safe_load((ROOT / "MLproject").read_text())
    for parameter in document["entry_points"][name]["parameters"].values():
        assert parameter["type"] in ("string", "float", "path", "uri")
        assert "default" in parameter
        assert parameter["description"].endswith(".")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_makes_its_command_from_the_defaults(name: str) -> None:
    command = load_project(str(ROOT)).get_entry_point(name).compute_command({}, storage_dir=None)
    module = command.split()[2]
    assert command.startswith(("python -m projects.", "python -m mlflow_deploy_plugin.cli batch "))
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    assert "{" not in command
