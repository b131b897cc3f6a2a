"""What an alarm starts: a run of the model's project, a candidate, its gate, and the way it goes into service.

plan.py       what is to be done, and what caused it
consider.py   whether an alarm starts one: cool-down, budget, one at a time; and those that a person asks for
scheduled.py  those that a schedule asks for
material.py   the labelled rows that are learned, and those that are held out
training.py   from the rows to the run's end
child.py      the process that trains
heartbeat.py  that it says that it runs
tracked.py    the run and the version in MLflow
served.py     what is served meanwhile
judged.py     the gate beside it
bringing.py   from the version to its end: gate, rollout, proposal
hands.py      what every step does with it: writes it down, ends it, tells people
steps.py      the states, one step after the other; the best place to begin reading
advance.py    all of them, again and again
journal.py    what the audit trail keeps
"""
