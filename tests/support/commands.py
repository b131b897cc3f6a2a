"""The output of commands."""

from click.testing import Result


def said(result: Result) -> str:
    """Return the single line that a failed command has printed."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().removeprefix("Error: ")
