"""How long to train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How long to train: steps, or minutes of wall time; exactly one of them.

    Steps give every decoder the same images, minutes give every decoder the same time.

    Raises:
        ValueError: both or neither, or a value that is not positive.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes as the budget, got {self.steps} and {self.minutes}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes must be positive and finite, got {self.minutes}")

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget, 0..1, that steps or seconds of training have used."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))

    def validation_interval(self, asked: int | None) -> int:
        """Steps between validations: those asked for, else a tenth of the steps, else 200."""
        if asked is not None:
            return asked
        return max(1, self.steps // 10) if self.steps is not None else 200
