"""The replay's parts: a year of flights sent to an endpoint that watches itself and is trained anew by itself.

changes.py    drift that is injected, where somebody asks for it, and labelled as such
stage.py      the endpoint with its monitors, and the controller beside it
feed.py       the traffic, with labels a day late, every request counted
watch.py      waiting until a window is judged and what follows it is done
outcome.py    what came of it: tables, the plot
"""
