"""A test of the version of mlflow-kubernetes-plugins, which has other requirements than
the environment of the tests. The journeys in test_kubernetes_auth.py run a server.
"""

from tests.support.guides import ROOT
from tests.support.services.logins_environment import PLUGINS


def test_kubernetes_auth_guide_names_tested_version():
    assert PLUGINS[1] in (ROOT / "docs" / "kubernetes.md").read_text()
