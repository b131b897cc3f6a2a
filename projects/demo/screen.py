"""What the demo prints: numbered steps with the seconds since the start, lines of progress, and a table at the end."""

import time
from collections.abc import Callable, Sequence


class Screen:
    """Prints at once, so that a long step is seen to move."""

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._steps = steps
        self._step = 0

    def step(self, title: str) -> None:
        self._step += 1
        print(f"\n[{self._step}/{self._steps}] {self.seconds():3.0f} s  {title}", flush=True)

    def line(self, text: str) -> None:
        for part in text.splitlines() or [""]:
            print(f"          {part}", flush=True)

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Two columns; a second value of several lines stays in its column."""
        width = max(len(name) for name, _ in rows)
        rule = "─" * (width + 3 + max(len(line) for _, value in rows for line in value.splitlines()))
        print(f"\n{rule}", flush=True)
        for name, value in rows:
            for label, line in zip((name, *[""] * value.count("\n")), value.splitlines(), strict=True):
                print(f"{label:{width}}   {line}")
        print(rule, flush=True)

    def seconds(self) -> float:
        return self._clock() - self._start
