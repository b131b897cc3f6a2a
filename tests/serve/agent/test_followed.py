import pytest

from mlflow_deploy_plugin.core.statedir.models import FetchedVersion
from mlflow_deploy_plugin.serve.agent.followed import (
    FollowedModel,
    ModelRef,
    checkpoint,
    restore_checkpoint,
)
from tests.support.models import write_pyfunc

STAGE = ModelRef("models:/x/Production", "gate=passed", "/etc/release.pem", True)


def version(number, folder, **fields):
    return FetchedVersion(**{"model": "x", "version": number, "folder": folder, **fields})


def test_current_and_previous_version_are_restored(make_model, tmp_path):
    new = version("2", make_model(tmp_path / "2"), aspects={"stage": "Production"}, source="s2")
    old = version("1", make_model(tmp_path / "1"), identity="i", source="s1", runs_code=True)
    checkpoint(tmp_path, {STAGE: FollowedModel(new, old), ModelRef("models:/y@a"): FollowedModel()})
    assert restore_checkpoint(tmp_path) == {STAGE: FollowedModel(new, old)}


def test_missing_version_is_replaced_by_the_previous(make_model, tmp_path):
    old = version("1", make_model(tmp_path / "1"))
    checkpoint(tmp_path, {STAGE: FollowedModel(version("2", tmp_path / "gone"), old)})
    assert restore_checkpoint(tmp_path) == {STAGE: FollowedModel(old)}


@pytest.mark.parametrize(
    ("builds_environments", "python", "is_restored"),
    [
        (False, "", True),
        (False, "gone", False),
        (True, "", False),
        (True, "gone", False),
        (True, __file__, True),
    ],
)
def test_pyfunc_needs_its_environment(tmp_path, builds_environments, python, is_restored):
    folder = write_pyfunc(tmp_path / "1", "m", "")
    models = {STAGE: FollowedModel(version("1", folder, python=python))}
    checkpoint(tmp_path, models)
    assert restore_checkpoint(tmp_path, builds_environments) == (models if is_restored else {})


@pytest.mark.parametrize(
    ("uri", "is_followed"),
    [
        ("models:/x@live", True),
        ("models:/x/tag:a=b", True),
        ("models:/x/3", False),
        ("models:/", False),
    ],
)
def test_stage_alias_and_tag_are_followed(uri, is_followed):
    assert ModelRef(uri).is_followed is is_followed
