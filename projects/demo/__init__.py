"""The whole loop on real data: wrap, register, promote, deploy, predict, judge. `python -m projects.demo` runs it.

__main__.py     the command line: run or stop
story.py        the steps in their order; the best place to begin reading
steps.py        each step as a function of MLflow, the deployment client and the flights
place.py        where the demo keeps its things, and the environment that points everything there
servers.py      starting the MLflow server, and ending what the demo started, and nothing else
screen.py       progress lines and the table at the end
"""
