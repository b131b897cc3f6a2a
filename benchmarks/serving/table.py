"""Compute ratios from rounds, and a table that shows which targets are met."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .load import Measured


@dataclass(frozen=True)
class Row:
    """A comparison of onnxserve with another server, round by round.

    Attributes:
        ratios: of each round, ours ÷ theirs (of a duration or a size: theirs ÷ ours).
        target: the smallest median ratio that meets the target; None: for information.
    """

    work: str
    against: str
    ours: str
    theirs: str
    ratios: Sequence[float]
    target: float | None

    def __str__(self) -> str:
        ratio = median(self.ratios)
        target = "" if self.target is None else f"≥ {self.target:g}"
        met = "" if self.target is None else "yes" if ratio >= self.target else "**no**"
        spread = f"{ratio:.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})"
        cells = (self.work, self.against, self.ours, self.theirs, spread, target, met)
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| work | compared with | onnxserve: rate, p50 / p99 | the other | ratio (least–greatest) "
    "| target | met |\n|---|---|---|---|---|---|---|"
)


def compared(
    work: str,
    against: str,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    target: float | None,
) -> Row:
    """Compare requests per second in each round."""
    ratios = [mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)]
    return Row(work, against, shown(ours), shown(theirs), ratios, target)


def times_less(
    work: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    target: float | None,
) -> Row:
    """Compare durations or sizes, where smaller values are better: the ratio is theirs
    ÷ ours.
    """
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
    mine, other = (f"{median(values):.3g} {unit}" for values in (ours, theirs))
    return Row(work, against, mine, other, ratios, target)


def shown(rounds: Sequence[Measured]) -> str:
    """Return requests per second and the latencies, as medians over the rounds."""
    rate, p50, p99 = (
        median(values) for values in zip(*((r.rate, r.p50, r.p99) for r in rounds), strict=True)
    )
    return f"{rate:,.0f}/s, {p50 * 1e3:.2f} / {p99 * 1e3:.2f} ms"
