"""Retraining: after an alarm, by a schedule or for a user, run the model's project and
roll out the new version.

Read `runner.py` first, which contains the states and the steps after the training.
`trigger.py` starts retrainings, `training.py` contains the steps up to the end of the
run, and `process.py` starts the training process and its run.
"""
