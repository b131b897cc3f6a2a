"""Loading a version warms it up and finds out how it is best run."""

import logging
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.runtime import BatchPolicy
from mlflow_deploy_plugin.server.models.loading import has_random_nodes, load_warm
from tests.support.models import write_model

FIXED = "fixed (float[2,2] X) => (float[2,2] y) { y = Identity(X) }"
NOISY = "noisy (float[N,2] X) => (float[N,2] y) { noise = RandomNormalLike(X) y = Add(X, noise) }"

ENDLESS = """
endless (float[N,2] X) => (float[N,2] y) <int64 trips = {1000000000000}, bool go = {1}> {
  y = Loop(trips, go, X) <body = step (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] t)
    <float[1] one = {1.0}> { d = Identity(c)
      t = Add(s, one) }>
}"""


def test_a_graph_that_does_not_come_to_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match=r"it has not computed its first answer within 0\.3 s"):
        load_warm(write_model(tmp_path / "model", ENDLESS), "cpu", 1, timeout_seconds=0.3)


def test_a_version_is_timed_and_batched(model_folders: dict[str, Path]) -> None:
    warm = load_warm(model_folders["mixed"], "cpu", 1, BatchPolicy(8))

    assert 0 < warm.seconds_per_row < 0.1
    assert warm.batcher is not None
    assert warm.batcher.policy.max_batch_size == 8


def test_without_a_policy_nothing_is_batched(model_folders: dict[str, Path]) -> None:
    assert load_warm(model_folders["mixed"], "cpu", 1).batcher is None


def test_a_fixed_batch_is_never_batched_and_the_log_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warm = load_warm(write_model(tmp_path / "model", FIXED), "cpu", 1, BatchPolicy(8))

    assert warm.batcher is None
    assert 0 < warm.seconds_per_row < 0.1
    assert "requests are not joined: it has no batch dimension: its input 'X'" in caplog.text


@pytest.mark.parametrize(("graph", "is_random"), [(NOISY, True), (FIXED, False)], ids=["noisy", "fixed"])
def test_random_nodes_are_found_in_the_bytes(tmp_path: Path, graph: str, is_random: bool) -> None:
    folder = write_model(tmp_path / "model", graph)

    assert has_random_nodes(next(folder.glob("**/*.onnx"))) == is_random
    warm = load_warm(folder, "cpu", 1, check_determinism=True)
    assert warm.is_deterministic == (not is_random)
