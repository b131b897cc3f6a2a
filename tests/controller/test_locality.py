"""Which controllers take whose rollouts further."""

from pathlib import Path

from mlflow_deploy_plugin.controller.locality import is_local, rollouts_lease_name
from mlflow_deploy_plugin.settings import Settings


def test_controllers_that_see_the_same_state_folders_want_the_same_lease_and_others_another(tmp_path: Path) -> None:
    here, there, nowhere = (Settings(home=tmp_path / name) for name in ("here", "there", "nowhere"))
    for settings in (here, there):
        (settings.deployments_path / "flights").mkdir(parents=True)

    assert rollouts_lease_name(here) == rollouts_lease_name(here)
    assert rollouts_lease_name(here) != rollouts_lease_name(there)
    assert rollouts_lease_name(nowhere) == ""
    assert [is_local("flights", settings) for settings in (here, there, nowhere)] == [True, True, False]
