"""A statement has limits of time, by the test's clock, and of memory."""

from dataclasses import dataclass, field

import pytest

from mlflow_deploy_plugin.inference_log.query import StatementTimeout, limit_memory


@dataclass
class Watched:
    """A statement that is interrupted after ten seconds."""

    now: float = 0.0
    interrupted: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timeout = StatementTimeout(lambda: self.interrupted.append(self.now), 10.0, lambda: self.now)

    def after(self, seconds: float) -> list[float]:
        self.now += seconds
        self.timeout.check()
        return self.interrupted


def test_a_statement_is_interrupted_where_nothing_comes_of_it() -> None:
    watched = Watched()
    with watched.timeout.working():
        assert watched.after(9) == []
        with watched.timeout.reading():
            pass
        assert watched.after(9) == []
        assert not watched.timeout.is_over
        assert watched.after(2) == [20]
    assert watched.timeout.is_over


def test_what_the_log_takes_and_what_is_done_with_the_answer_does_not_count() -> None:
    watched = Watched()
    with watched.timeout.working(), watched.timeout.reading():
        assert watched.after(1000) == []
    assert watched.after(1000) == []
    with watched.timeout.working():
        assert watched.after(9) == []


def test_memory_beyond_the_bound_is_refused_and_afterwards_not() -> None:
    with limit_memory(100 * 2**20):
        assert len(bytearray(50 * 2**20))
        with pytest.raises(MemoryError):
            bytearray(200 * 2**20)
    assert len(bytearray(200 * 2**20))
