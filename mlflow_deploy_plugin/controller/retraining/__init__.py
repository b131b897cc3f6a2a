"""Retraining: an alarm, a schedule or a person starts a run of the model's project, and a rollout serves its version.

Begin to read in `runner.py`, which has the states and the steps of a registered version. `trigger` starts retrainings,
`training` covers the rows to the end of the run, and `process` is the training process and its MLflow run.
"""
