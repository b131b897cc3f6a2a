"""How good a probability of delay is."""

import numpy as np
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score


def score(delayed: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """ROC AUC, log loss and Brier score.

    Args:
        delayed: [N] bool, what happened; both outcomes must occur.
        probability: [N] float, the model's probability of a delay.
    """
    return {
        "roc_auc": float(roc_auc_score(delayed, probability)),
        "log_loss": float(log_loss(delayed, probability)),
        "brier_score": float(brier_score_loss(delayed, probability)),
    }
