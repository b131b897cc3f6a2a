import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlflow_deploy_plugin.inference_log import locate_log
from mlflow_deploy_plugin.inference_log.watermarks import (
    GONE_AFTER,
    Watermark,
    expire_watermarks,
    read_watermarks,
    write_watermark,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_what_each_agent_has_last_said_is_read_back(tmp_path: Path) -> None:
    location = locate_log(str(tmp_path / "log"))
    assert read_watermarks(location) == []
    for agent in ("b", "a"):
        write_watermark(location, Watermark(agent, ("e",), NOON, NOON))
    last = Watermark("a", ("e", "f"), NOON, NOON.replace(minute=1), True, {"e": 3}, {"e": 2}, {"f": 1}, {"e": 2})
    write_watermark(location, last)
    assert read_watermarks(location) == [last, Watermark("b", ("e",), NOON, NOON)]


def test_one_that_cannot_be_understood_hides_no_other(tmp_path: Path) -> None:
    location = locate_log(str(tmp_path))
    mark = Watermark("a", (), NOON, NOON)
    write_watermark(location, mark)
    (tmp_path / "_watermarks" / "b.json").write_text('{"agent": "b", "endpoints": []')
    (tmp_path / "_watermarks" / "c.json").write_text("[]")
    assert read_watermarks(location) == [mark]


def test_those_of_agents_that_have_long_said_nothing_go(tmp_path: Path) -> None:
    location = locate_log(str(tmp_path))
    assert expire_watermarks(location, NOON) == []
    for agent, age in (("gone", GONE_AFTER), ("quiet", GONE_AFTER - timedelta(hours=1))):
        write_watermark(location, Watermark(agent, ("e",), NOON, NOON))
        said = (NOON - age).timestamp()
        os.utime(tmp_path / "_watermarks" / f"{agent}.json", (said, said))

    assert expire_watermarks(location, NOON) == ["gone"]
    assert [mark.agent for mark in read_watermarks(location)] == ["quiet"]
