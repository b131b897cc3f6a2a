"""GitHub's workflows as scripts: the `run:` steps of a job are executed in order on
this machine, as by a runner.

Steps with `uses:` (a checkout, a Python, a registry's login) are skipped, because their
results already exist here.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_TIMEOUT_SECONDS = 300
_LOOKUP = re.compile(r"\b(?:inputs|secrets|needs|steps|github|env)(?:\.[\w-]+)+")


@dataclass
class StepResult:
    """The result of a step: its exit status, and its output on both streams."""

    name: str
    status: int
    output: str

    @property
    def error(self):
        """The annotation that GitHub shows; empty if the step has not written any."""
        return next(
            (
                line[len("::error::") :]
                for line in self.output.splitlines()
                if line.startswith("::error::")
            ),
            "",
        )


@dataclass
class Workflow:
    """A workflow; a reusable workflow is called with these inputs and secrets.

    Attributes:
        folder: the checkout, in which steps run.
        environment: the variables of every process, in addition to the variables of the
            workflow.
    """

    file: Path
    folder: Path
    inputs: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        # The BaseLoader reads the key `on` as a word, not as True.
        self._document = yaml.load(self.file.read_text(), yaml.BaseLoader)
        assert self._document["defaults"]["run"]["shell"] == "bash", "steps run here with pipefail"
        call = self._document["on"].get("workflow_call", {})
        declared = call.get("inputs", {})
        assert set(self.inputs) <= set(declared), "an input that the workflow does not have"
        required = {
            name for name, declaration in declared.items() if declaration.get("required") == "true"
        }
        assert required <= set(self.inputs), "a required input is missing"
        defaults = {name: declaration.get("default", "") for name, declaration in declared.items()}
        self._context = {
            "inputs": {**defaults, **{name: str(value) for name, value in self.inputs.items()}},
            "secrets": dict(self.secrets),
            "github": {
                "workflow": self._document["name"],
                "run_id": "42",
                "sha": "0" * 40,
                "actor": "me",
            },
            "needs": {},
        }

    def run(self, job, leave_out=()):
        """Run one job; the jobs after it see its outputs. Steps that a condition skips
        are not in the result.

        Args:
            leave_out: names of steps that are not run.
        """
        described = self._document["jobs"][job]
        needs = self._context["needs"]
        before = described.get("needs", [])
        has_failed = any(
            needs[item]["result"] != "success"
            for item in ([before] if isinstance(before, str) else before)
        )
        if not self._holds(described.get("if", "true"), has_failed):
            needs[job] = {"result": "skipped"}
            return []
        self._context["steps"] = {}
        variables = {**self._document.get("env", {}), **described.get("env", {})}
        results = []
        for step in described["steps"]:
            has_failed = any(item.status for item in results)
            if (
                "run" in step
                and step["name"] not in leave_out
                and self._holds(step.get("if", "true"), has_failed)
            ):
                results.append(self._step(step, {**variables, **step.get("env", {})}))
        outputs = {name: self._filled(text) for name, text in described.get("outputs", {}).items()}
        needs[job] = {
            "result": "failure" if any(item.status for item in results) else "success",
            "outputs": outputs,
        }
        return results

    def _step(self, step, variables):
        output = self.folder / ".output"
        output.write_text("")
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                # The packages that a step installs are already in this environment.
                "PIP_NO_INDEX": "1",
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                **self.environment,
                **{name: self._filled(text) for name, text in variables.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
        self._context["steps"][step.get("id", step["name"])] = {"outputs": outputs}
        return StepResult(step["name"], ran.returncode, ran.stdout)

    def _filled(self, text):
        return re.sub(r"\$\{\{(.*?)\}\}", lambda found: self._value(found[1].strip()), text)

    def _value(self, path):
        value: Any = self._context
        for part in path.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return str(value)

    def _holds(self, condition, has_failed):
        """Evaluate a condition of comparisons, `!cancelled()`, `cancelled()`, `&&` and
        `||`.
        """
        is_always = "cancelled()" in condition or "always()" in condition
        inner = condition.strip().removeprefix("${{").removesuffix("}}")
        words = _LOOKUP.sub(
            lambda found: repr(self._value(found[0])), inner.replace("cancelled()", "False")
        )
        words = (
            words.replace("&&", " and ")
            .replace("||", " or ")
            .replace("!False", "True")
            .replace("true", "True")
        )
        return bool(eval(words.strip())) and (is_always or not has_failed)
