"""docker/slim.py on a small folder of packages; needs no Docker."""

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.refusals import mentions

SLIM = Path(__file__).parents[2] / "docker" / "slim.py"


@pytest.fixture
def packages(tmp_path):
    """Return packages after `keep_what_serves`; the modules in `imported` were imported
    by the image's build.
    """
    folder = tmp_path / "lib" / "site-packages"
    for name in (
        "other/used",
        "other/unused",
        "mlflow/__init__",
        "mlflow/sklearn/__init__",
        "anyio/__init__",
        "mlflow_deploy_plugin/serve/app",
        "mlflow_deploy_plugin/wrap/save",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("def fail():\n    raise ValueError\n")
    for path in folder.rglob("*.py"):
        if not path.match("unused.py") and not path.match("sklearn/*"):
            compileall.compile_file(path, quiet=1)
    subprocess.run([sys.executable, SLIM, "--serve", tmp_path], check=True)
    return folder


def files(packages):
    return {f"{path.relative_to(packages)}".replace(f".{sys.implementation.cache_tag}", "")
            for path in packages.rglob("*.py*") if path.is_file()}  # fmt: skip


def test_only_serving_files_are_kept(packages):
    assert files(packages) == {
        "other/used.pyc",
        "other/unused.py",
        "mlflow/__init__.pyc",
        "anyio/__init__.py",
        "anyio/__pycache__/__init__.pyc",
        "mlflow_deploy_plugin/wrap/save.py",
        "mlflow_deploy_plugin/serve/app.py",
        "mlflow_deploy_plugin/serve/__pycache__/app.pyc",
    }
    ended = subprocess.run(
        [sys.executable, "-c", "import other.used; other.used.fail()"],
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )
    assert mentions(ended.stderr, f'File "{packages}/other/used.py"', "in fail")


@pytest.mark.skipif(not shutil.which("readelf"), reason="no binutils")
def test_emptied_library_needs_no_executable_stack(tmp_path):
    library = tmp_path / "site-packages" / "pyarrow" / "libarrow_substrait.so.2500"
    library.parent.mkdir(parents=True)
    subprocess.run(["as", "/dev/null", "-o", "any.o"], cwd=tmp_path, check=True)
    subprocess.run(["ld", "-shared", "-o", library, "any.o"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, SLIM, tmp_path], cwd=tmp_path, check=True)
    segments = subprocess.run(
        ["readelf", "-lW", library], capture_output=True, text=True, check=True
    ).stdout
    (stack,) = [line.split() for line in segments.splitlines() if "GNU_STACK" in line]
    assert "RWE" not in stack
