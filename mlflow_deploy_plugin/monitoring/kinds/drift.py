"""Data drift: does the window differ from the reference more than the reference's own windows differ from it?"""

from mlflow_deploy_plugin.monitoring.judgement import Judged
from mlflow_deploy_plugin.monitoring.kinds.comparison import compare
from mlflow_deploy_plugin.monitoring.question import Question


def judge(question: Question) -> Judged:
    """Judges every column of the window, or those of the spec: inputs and answers.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    compared = compare(question)
    if isinstance(compared, Judged):
        return compared
    verdict = compared.judge(question.spec.columns)
    return compared.judged(verdict.state, verdict.reason, verdict, verdict.findings)
