"""Folders of tiny models, a Redis, and servers within this process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.server.assembly import Server, open_server
from mlflow_deploy_plugin.spec import ServerSpec
from tests.support.models import mixed_model, tensor_model
from tests.support.servers import single_model, stock_model, want, write_spec
from tests.support.services.redis_server import redis_server
from tests.support.waiting import wait_until

MAKERS: dict[str, Callable[[Path], Path]] = {
    "mixed": mixed_model,
    "single": single_model,
    "tensor": tensor_model,
    "stock": stock_model,
}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of each model by its kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


@pytest.fixture(scope="session")
def bias_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return versions 1 to 4 of the single model; version v adds 1000 · v."""
    root = tmp_path_factory.mktemp("versions")
    return {str(version): single_model(root / str(version), 1000.0 * version) for version in range(1, 5)}


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def serve_here(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Open servers in this process on endpoint → variant → fields, and waits until it is ready.

    `server` are fields of the spec's server.
    """
    opened: list[Server] = []

    def serve(
        endpoints: dict[str, dict[str, dict[str, Any]]], server: dict[str, Any] | None = None, **capture: Any
    ) -> Server:
        state_dir = tmp_path / f"state-{len(opened)}"
        want(state_dir, 1, endpoints, **capture)
        if server is not None:
            write_spec(state_dir, "e", ServerSpec.model_validate(server))
        opened.append(open_server(state_dir))
        repository = opened[-1].repository
        seconds = 60 + len(endpoints) / 10  # beside other work, 1,300 models took a minute
        wait_until(lambda: not repository.not_ready_reason(), seconds, "the server")
        return opened[-1]

    yield serve
    for server in opened:
        server.close()
