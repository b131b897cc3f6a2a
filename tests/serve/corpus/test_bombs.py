"""The memory that a body takes is bounded. Each bomb is read in a new process."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.serve.corpus.bombs import BOMBS, measure

TAKEN = {"JSON: numbers", "CSV: fields"}
"""The bombs that a model accepts; all other bombs are refused."""


@pytest.fixture(scope="module")
def pool():
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.serve.corpus.bombs"])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield pool


@pytest.mark.long
@pytest.mark.parametrize("name", BOMBS)
def test_memory_of_bomb_is_bounded(pool, name):
    mib, message = pool.submit(measure, name).result()
    assert mib < BOMBS[name].most_mib
    assert message.startswith(("400 ", "413 ")) != (name in TAKEN)
