"""What a run can be asked for; `choosing.py` computes what that is in a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from clipmill.schemas.errors import UsageError


@dataclass(frozen=True)
class Wish:
    """What the user asks a run for; at most one of `where`, `subset` and `sample`."""

    where: str | None = None
    subset: str | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = [
            f"--{name}" for name in ("where", "subset", "sample") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: give one of them")
        if self.where is not None and not self.where.strip():
            raise UsageError('--where is empty; give a predicate, e.g. --where "aesthetic > 5"')
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"--sample {self.sample}: give at least 1")

    def __bool__(self) -> bool:
        return (self.where, self.subset, self.sample) != (None, None, None)

    def __str__(self) -> str:
        if self.where is not None:
            return f"--where {' '.join(self.where.split())}"
        if self.subset is not None:
            return f"--subset {self.subset}"
        return f"--sample {self.sample}" + (f" --seed {self.seed}" if self.seed else "")

    def options(self) -> dict[str, list[str | int | None]]:
        """The options of `clipmill run` that ask for it, with their values."""
        return {
            "--where": [self.where],
            "--subset": [self.subset],
            "--sample": [self.sample],
            "--seed": [self.seed or None],
        }


def check_limit(wish: Wish | None, limit: int | None) -> None:
    """UsageError if a wish comes with a limit to the sources that are added."""
    if wish and limit is not None:
        raise UsageError(f"--limit with {wish}: it is about sources to add; give one of them")
