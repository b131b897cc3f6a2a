"""Threads and providers of a session are what was asked for, never what ONNX Runtime would guess."""

import os
from pathlib import Path

import pytest

from mlflow_deploy_plugin.runtime import available_cores, session


@pytest.mark.parametrize(
    ("cpu_max", "quota_v1", "expected"),
    [
        ("max 100000", "-1", 8),
        ("200000 100000", "-1", 2),
        ("50000 100000", "-1", 1),
        (None, "-1", 8),
        (None, "300000", 3),
        (None, None, 8),
    ],
)
def test_the_cores_are_those_that_the_cgroup_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str | None, quota_v1: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(session, "_CGROUP_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(session, "_CGROUP_V1_CPU", (tmp_path / "quota", tmp_path / "period"))
    if cpu_max is not None:
        (tmp_path / "cpu.max").write_text(cpu_max)
    if quota_v1 is not None:
        (tmp_path / "quota").write_text(quota_v1)
        (tmp_path / "period").write_text("100000\n")
    assert available_cores() == expected
