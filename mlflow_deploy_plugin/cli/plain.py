"""What somebody has typed, shown on a terminal."""


def printable(text: str) -> str:
    """One line that a terminal only shows: what stands in it was typed by anybody."""
    return "".join(one if one.isprintable() else " " for one in text)
