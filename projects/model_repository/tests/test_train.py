from sklearn.metrics import roc_auc_score
from train import fit, load_rows


def test_the_model_is_better_than_chance_on_rows_that_it_has_not_seen() -> None:
    rows, truth = load_rows(is_held_out=True)
    assert roc_auc_score(truth, fit(1.0).predict_proba(rows)[:, 1]) > 0.9
