"""The parts of the replay: a year of flights sent to an endpoint that monitors itself and is retrained automatically.

| module              | content                                                                |
|---------------------|------------------------------------------------------------------------|
| `injected_drift.py` | drift that is injected on request, and labelled as such                |
| `setup.py`          | the first version, the endpoint with its monitors, and the controller  |
| `feed.py`           | the traffic, with labels a day late, every request counted             |
| `waiting.py`        | waiting until a window is judged and its consequences are done         |
| `results.py`        | tables, the conclusion and the plot                                    |
"""
