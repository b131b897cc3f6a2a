"""A section of ours in the description of a model version: replaced as a whole, beside what people wrote there."""

import re

from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors

LONGEST_DESCRIPTION = 5000
"""Characters that every store of MLflow keeps of a description."""
_BEGIN, _END = "<!-- onnxserve: what follows is replaced -->", "<!-- onnxserve: end -->"
_LINES = (
    r"(?:\n(?:\|[^\n]*)?(?=\n|\Z))*"  # of a table, and empty ones: where somebody took the end away, no more is ours
)
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}{_LINES}\n*(?:{re.escape(_END)})?\n*")


def write_section(name: str, version: str, lines: list[str]) -> None:
    """Replaces the section by these lines of a Markdown table, as many of them from the first on as there is room for.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        client = registry_client()
        before = client.get_model_version(name, version).description or ""
        after = with_section(before, lines)
        if after != before:
            client.update_model_version(name, version, after)


def with_section(description: str, lines: list[str]) -> str:
    """The description with the section at its end; without it where there is no line, or no room for one."""
    own = _SECTION.sub("\n\n", description).strip("\n")
    head = f"{own}\n\n{_BEGIN}\n" if own else f"{_BEGIN}\n"
    kept: list[str] = []
    room = LONGEST_DESCRIPTION - len(head) - len(_END) - 1
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([head.rstrip("\n"), *kept, "", _END]) if kept else own
