"""The memory limit of a worker, with files of real size and memory that is really taken."""

import re
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import ModelError
from mlflow_deploy_plugin.server.models import memory
from mlflow_deploy_plugin.server.models.memory import MemoryLimit, worker_limit

MIB = 2**20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a folder of 16 MiB."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "weights").open("wb") as file:
        file.truncate(16 * MIB)
    return tmp_path


def test_without_a_limit_everything_is_loaded(model: Path) -> None:
    with MemoryLimit(None).loading(model):
        pass


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that is too small to measure its load."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "weights").write_bytes(b"x")
    return folder


def test_a_version_that_would_pass_the_limit_is_refused_with_the_figures(model: Path, small: Path) -> None:
    used = MemoryLimit(None).used()
    for room, is_loaded in ((64, True), (16, False)):
        limit = MemoryLimit(used + room * MIB)
        with limit.loading(small):
            pass
        if is_loaded:
            with limit.loading(model):
                pass
            continue
        with pytest.raises(ModelError) as refused, limit.loading(model):
            pytest.fail("it was loaded")
        assert re.fullmatch(
            r"loading it would take about 32 MiB beside the [\d,]+ MiB that this worker has in memory, "
            r"and its limit is [\d,]+ MiB \(server.max_worker_memory_bytes\)",
            refused.value.message,
        )


def test_a_first_version_has_nobody_beside_it(model: Path) -> None:
    with MemoryLimit(MemoryLimit(None).used() + 24 * MIB).loading(model):
        pass
    with pytest.raises(ModelError, match="about 16 MiB"), MemoryLimit(MIB).loading(model):
        pass


def test_what_the_last_version_took_tells_what_the_next_one_takes(model: Path) -> None:
    limit = MemoryLimit(MemoryLimit(None).used() + 80 * MIB)
    with limit.loading(model):
        held = b"x" * (48 * MIB)  # three times its files
    with pytest.raises(ModelError, match=r"about (4[5-9]|5\d) MiB"), limit.loading(model):
        pass
    assert held


@pytest.mark.parametrize(
    ("content", "limit"),
    [("max", None), ("9223372036854771712", None), (str(1024 * MIB), 384 * MIB), (str(4096 * MIB), 1856 * MIB)],
)
def test_a_worker_has_its_share_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, limit: int | None
) -> None:
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(memory, "_CGROUPS", (tmp_path / "nothing", tmp_path / "memory.max"))
    assert worker_limit(None, 2) == limit
    assert worker_limit(300, 2) == 300
