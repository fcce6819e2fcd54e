"""What every trigger says in audit.yaml, whatever its family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.triggers.pattern import Pictures

Trigger = Callable[[Pictures], Pictures]
"""(N, H, W, C) float32 pictures in 0..1 -> the same, triggered; the argument is left as it was."""

Class = Annotated[int, Field(ge=0)] | str
Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Seed = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class BaseSpec(BaseModel):
    """A trigger that is known.

    name: what the report calls it.  target: the class it aims at, an index, a label, or so many classes on: `next` for label + 1, `+2`, ….  source: the only
    class whose images it works on, an index or a label; without it, every class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    paths: ClassVar[tuple[str, ...]] = ()
    """Its fields that name a file."""

    name: str
    target: Class
    source: Class | None = None

    def files(self) -> dict[str, str]:
        """The files it names, by field."""
        return {field: value for field in self.paths if (value := getattr(self, field)) is not None}

    def relative_to(self, folder: Path) -> Self:
        """The same with absolute paths."""
        return self.model_copy(update={field: str(folder / Path(value).expanduser()) for field, value in self.files().items()})

    def build(self, channels: int) -> Trigger:
        """Read the files, for pictures of 1 or 3 channels.  Raises SpecRefused."""
        raise NotImplementedError
