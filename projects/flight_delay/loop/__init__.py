"""The parts of the replay: a year of flights is sent to an endpoint that is monitored
and retrained automatically.

- `injected_drift.py`: drift that is injected on request, and labelled as such
- `setup.py`: the first version, the endpoint with its monitors, and the controller
- `feed.py`: the traffic, with labels a day late, and counts of all requests
- `waiting.py`: waiting for the verdicts on a window and for the retraining
- `results.py`: tables, the conclusion and the plot
"""
