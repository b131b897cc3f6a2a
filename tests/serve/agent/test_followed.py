from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import FetchedVersion, Wanted
from mlflow_deploy_plugin.serve.agent.followed import (
    FollowedModel,
    ModelRef,
    checkpoint,
    restore_checkpoint,
)

MakeModel = Callable[..., Path]
STAGE = ModelRef("models:/x/Production", "gate=passed", "/etc/release.pem", True)


def version(number, folder, **fields):
    return FetchedVersion(**{"model": "x", "version": number, "folder": folder, **fields})


def test_the_version_and_the_one_before_are_found_again(make_model, tmp_path):
    new = version(
        "2", make_model(tmp_path / "2"), aspects={"stage": "Production"}, source="models:/x/2"
    )
    old = version(
        "1",
        make_model(tmp_path / "1"),
        identity="models:/x/1",
        source="models:/x/1",
        runs_code=True,
    )
    checkpoint(tmp_path, {STAGE: FollowedModel(new, old), ModelRef("models:/y@a"): FollowedModel()})
    assert restore_checkpoint(tmp_path) == {STAGE: FollowedModel(new, old)}


def test_a_version_that_is_gone_gives_way_to_the_one_before(make_model, tmp_path):
    old = version("1", make_model(tmp_path / "1"))
    checkpoint(tmp_path, {STAGE: FollowedModel(version("2", tmp_path / "gone"), old)})
    assert restore_checkpoint(tmp_path) == {STAGE: FollowedModel(old)}


def test_without_a_checkpoint_the_wanted_state_is_restored(make_model, tmp_path):
    whole = make_model(tmp_path / "whole")
    variants = {
        name: {
            "model_uri": f"models:/{name}/1",
            "model": name,
            "version": "1",
            "folder": str(folder),
        }
        for name, folder in (("whole", whole), ("gone", tmp_path / "gone"))
    }
    write_state(
        tmp_path / WANTED,
        Wanted.model_validate({"generation": 3, "endpoints": {"e": {"variants": variants}}}),
    )
    assert restore_checkpoint(tmp_path) == {
        ModelRef("models:/whole/1"): FollowedModel(version("1", whole, model="whole"))
    }


@pytest.mark.parametrize(
    ("uri", "is_followed"),
    [
        ("models:/x@live", True),
        ("models:/x/tag:a=b", True),
        ("models:/x/3", False),
        ("models:/", False),
    ],
)
def test_a_stage_an_alias_and_a_tag_are_followed(uri, is_followed):
    assert ModelRef(uri).is_followed is is_followed
