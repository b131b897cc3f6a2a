import pytest

from mlflow_deploy_plugin.agent.verify import pyfunc_policy
from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.spec import load_specs

SPEC = """
name: e
variants:
  pinned: {model: "models:/x/3"}
  stage: {model: "models:/x/Production"}
  allowed: {model: "models:/y@champion", allow_pyfunc: true}
  half: {model: "models:/z@champion", allow_pyfunc: true}
---
name: f
variants:
  half: {model: "models:/z@champion"}
"""


@pytest.mark.parametrize(("uri", "is_followed"), [("models:/x/3", False), ("models:/y@champion", True)])
def test_a_fixed_version_and_an_allowed_reference_may_run_code(uri: str, is_followed: bool) -> None:
    pyfunc_policy(load_specs(SPEC)).check(uri, is_followed)


@pytest.mark.parametrize(
    ("uri", "is_followed", "said"),
    [
        ("models:/x/Production", True, "-C variants.NAME.allow_pyfunc=true allows that"),
        ("models:/z@champion", True, "-C variants.NAME.allow_pyfunc=true allows that"),  # not by every variant
        ("models:/loaded-over-http/1", False, "which only the server's own spec can allow"),
    ],
)
def test_others_may_not(uri: str, is_followed: bool, said: str) -> None:
    with pytest.raises(InvalidArtifact, match=said):
        pyfunc_policy(load_specs(SPEC)).check(uri, is_followed)
