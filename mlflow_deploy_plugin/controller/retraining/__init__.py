"""Retraining: an alarm, a schedule or a person starts a run of the model's project, and a rollout serves its version.

plan            the plan of a retraining, and the context of its steps
trigger         starts one: on an alarm, with cool-down and budget; by a schedule; for a person
runner          the states, one step after the other, and the steps of a registered version: gate, rollout or proposal;
                the best place to begin reading
training        from the rows to the end of the run
process         the training process, and its run in MLflow
"""
