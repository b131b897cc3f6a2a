"""Data drift: does the window differ from the reference more than the reference's own windows differ from it?"""

from mlflow_deploy_plugin.monitoring.kinds.comparison import compare_window
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Judged


def judge(request: WindowRequest) -> Judged:
    """Judges every column of the window, or those of the spec: inputs and answers.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    compared = compare_window(request)
    if isinstance(compared, Judged):
        return compared
    verdict = compared.judge(request.spec.columns)
    return compared.judged(verdict.state, verdict.reason, verdict, verdict.findings)
