"""The entry points of the attacks. Policies read their strengths, so the module has no
heavy imports.
"""

from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.evaluation_names import Disturbance

if TYPE_CHECKING:
    from mlflow_deploy_plugin.wrap.evaluation.disturbances import DisturbedVersion, Disturber


def _attack(name: str, by_default: bool = True) -> Disturbance:
    def disturber(version: "DisturbedVersion") -> "Disturber | Refused":
        from mlflow_deploy_plugin.contrib.attacks.adversarial import attack

        return attack(name, version)

    return Disturbance(
        "largest change: standard deviations of a column, or share of an image's value range",
        (0.01, 0.03, 0.1, 0.3),
        is_share=False,
        by_default=by_default,
        disturber=disturber,
    )


FGSM = _attack("fgsm")
PGD = _attack("pgd")
SPSA = _attack("spsa", by_default=False)
