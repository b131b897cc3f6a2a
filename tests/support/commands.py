"""What commands say."""

from click.testing import Result


def said(result: Result) -> str:
    """Return the one line of a command that failed and did nothing."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr.strip().removeprefix("Error: ")
