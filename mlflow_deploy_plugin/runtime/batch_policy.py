"""What a batcher joins, and how long it lets requests wait."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPolicy:
    """What is joined, and how long it waits; the fields of `spec.ServerSpec`."""

    max_batch_size: int
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    max_queue_size: int = 1024

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that are warmed: powers of two, the largest, and those that are preferred."""
        powers = {2**power for power in range(self.max_batch_size.bit_length())}
        return tuple(sorted(powers | {self.max_batch_size, *self.preferred_batch_size}))
