"""The whole loop on real data: wrap, register, promote, deploy, predict, judge. `python -m projects.demo` runs it.

| module             | content                                                                           |
|--------------------|-----------------------------------------------------------------------------------|
| `__main__.py`      | the command line: run or stop                                                     |
| `walkthrough.py`   | the steps in their order, with their output; the best workspace to begin reading      |
| `steps.py`         | each step as a function of MLflow, the deployment client and the flights          |
| `workspace.py`     | the demo's folder, and the environment that points everything there               |
| `mlflow_server.py` | starting the MLflow server, and ending what the demo started, and nothing else    |
"""
