"""Environments that a real uv builds from tiny wheels."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotInstalled, OnnxserveError
from mlflow_deploy_plugin.serve.agent.pyfunc_environment import environment_python
from tests.support.disk import read_only, tiny_disk
from tests.support.refusals import refused
from tests.support.wheels import write_index, write_wheel

PYTHON = f"python: {sys.version_info[0]}.{sys.version_info[1]}.0"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_FIND_LINKS", str(write_index(root / "wheels", tiny=("1.0", "2.0"))))
        patch.setenv("UV_NO_INDEX", "1")
        patch.setenv("UV_PYTHON_DOWNLOADS", "never")
        patch.setenv("UV_HTTP_RETRIES", "0")
        patch.setenv("UV_CACHE_DIR", str(root / "cache"))
        yield root


@pytest.fixture
def build(index, tmp_path):
    """Builds the environment of a model with these files, and returns its Python."""

    def build(requirements="tiny==1.0", python_env=PYTHON):
        (tmp_path / "model").mkdir(exist_ok=True)
        for name, text in (("requirements.txt", requirements), ("python_env.yaml", python_env)):
            # Another thread may read the file.
            written = tmp_path / f"{name}-{threading.get_ident()}"
            written.write_text(text)
            written.replace(tmp_path / "model" / name)
        return environment_python(tmp_path / "model", tmp_path / "environments")

    return build


def tiny_version(python):
    return subprocess.check_output(
        [python, "-c", "import tiny; print(tiny.VERSION, end='')"], text=True
    )


def left(tmp_path):
    return list((tmp_path / "environments").iterdir())


def test_changed_requirements_make_another_environment(build, tmp_path):
    first = build("tiny==1.0\nmlflow==1.2.3\nmlflow-onnxserve==0.0.1")
    changed = build("tiny==2.0\n--no-binary nothing")
    assert (tiny_version(first), tiny_version(changed)) == ("1.0", "2.0")
    assert build("tiny==1.0\nmlflow==1.2.3\nmlflow-onnxserve==0.0.1") == first
    assert {python.parents[1] for python in (first, changed)} == set(left(tmp_path))


def test_concurrent_agents_build_once(build, monkeypatch, tmp_path):
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(build, ["tiny==2.0", "tiny==2.0"])
    assert first == second
    monkeypatch.setenv("PATH", "")
    assert build("tiny==2.0") == first  # Without uv, built environments still work.


@pytest.mark.parametrize(
    ("requirements", "python_env", "named"),
    [
        ("tiny==3.0", PYTHON, "no version of tiny==3.0"),
        ("no-such-package", PYTHON, "no-such-package was not found"),
        ("tiny ==== 1", PYTHON, "requirements.txt"),
        ("tiny", "python: 3.98.1", "Python 3.98"),
    ],
)
def test_failed_build_is_one_line(build, tmp_path, requirements, python_env, named):
    with refused(OnnxserveError, "uv cannot build its environment", named) as error:
        build(requirements, python_env)
    assert "\n" not in error.value.message
    assert not left(tmp_path)


@pytest.mark.parametrize(
    "python_env", ["", "[", "python: [3]", "python: --help", "dependencies: []"]
)
def test_model_without_a_python_is_refused(build, python_env):
    with refused(InvalidArtifact, "python_env.yaml"):
        build(python_env=python_env)


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/hostname",
        "-r/etc/hostname",
        "--find-links=/etc",
        "tiny @ file:///srv/tiny-1.0.zip",
        "wheels/../../other/tiny-1.0-py3-none-any.whl",
        "tiny @ http://127.0.0.1:9/${HOME}/tiny-1.0-py3-none-any.whl",
        "tiny @ http://127.0.0.1:9/tiny-1.0-py3-none-any.whl#${HOME}",
    ],
)
def test_requirements_outside_the_model_are_refused(build, line):
    with refused(InvalidArtifact, "requirements.txt"):
        build(f"tiny==1.0 # https://host/a\n{line}")


def test_model_files_do_not_configure_or_follow_uv(build, tmp_path):
    setup = "import setuptools; setuptools.setup(name='own', version='1')"
    model = tmp_path / "model"
    model.mkdir()
    for name, text in (("uv.toml", "{"), ("pyproject.toml", "{"), ("setup.py", setup)):
        (model / name).write_text(text)
    files = set(model.iterdir())
    assert tiny_version(build("tiny==2.0")) == "2.0"
    for line in ("-e .", ".", "-r more.txt"):
        with refused(OnnxserveError, "uv cannot build its environment"):
            build(line)
    written = {path.name for path in {*model.rglob("*")} - files}
    assert written == {"requirements.txt", "python_env.yaml"}


def test_other_wheels_of_a_model_make_another_environment(build, tmp_path):
    built = []
    for version in ("3.0", "4.0"):
        content = {"tiny.py": f"VERSION = {version!r}\n"}
        (tmp_path / "model").mkdir(exist_ok=True)
        write_wheel(tmp_path / "model" / "wheels", "tiny", "9.0", content)
        built.append(tiny_version(build("wheels/tiny-9.0-py3-none-any.whl")))
    assert built == ["3.0", "4.0"]


def test_index_password_is_not_shown(build):
    with pytest.raises(OnnxserveError) as error:
        build("tiny @ http://user:secret@127.0.0.1:9/tiny-1.0-py3-none-any.whl")
    assert "secret" not in error.value.message


def test_missing_uv_is_one_line(build, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with refused(NotInstalled, "uv", "pip install uv"):
        build("tiny")


def test_unwritable_cache_is_named(build, tmp_path):
    (tmp_path / "environments").mkdir()
    with read_only(tmp_path / "environments"), refused(OnnxserveError, "environments", "Read-only"):
        build()


def test_full_disk_is_named(build, tmp_path):
    with tiny_disk(tmp_path / "environments"):
        with refused(OnnxserveError, "uv cannot build its environment", "No space left"):
            build()
        assert not left(tmp_path)
