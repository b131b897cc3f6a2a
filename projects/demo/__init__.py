"""The complete loop on real data: wrap, register, promote, deploy, predict, judge. Run
it by `python -m projects.demo`.

- `__main__.py`: the command line, which runs or stops the demo
- `walkthrough.py`: the steps in order, with their output; start reading here
- `steps.py`: each step as a function of MLflow, the deployment client and the flights
- `workspace.py`: the folder of the demo, and the environment variables that point to it
- `mlflow_server.py`: starting and stopping the MLflow server of the demo
"""
