"""Settings: what a group of them is, and the types that bound them. No module of settings imports torch.

A group stands with what it sets, in the `settings.py` of its wing: its fields, each with a description, a bound and a
default; a `model_validator` for every rule between them, whose message reads `field: what is wrong; accepted: ...`; and
`idle`. A kind of cell is the sum of its groups: `bench.cells` names them, and has the rules between settings of two
groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kernels.tensors.rounding import nearest_multiples

LARGEST_INT = 2**31 - 1  # so that every setting fits a column, and a seed times 16 fits torch's generator


def _without_sign(value: float) -> float:
    return abs(value)  # -0.0 passes a bound of 0 and would be another cell


Fraction = Annotated[float, Field(ge=0.0, le=1.0), AfterValidator(_without_sign)]
ProperFraction = Annotated[float, Field(ge=0.0, lt=1.0), AfterValidator(_without_sign)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0), AfterValidator(_without_sign)]
Count = Annotated[int, Field(ge=1, le=LARGEST_INT)]
Natural = Annotated[int, Field(ge=0, le=LARGEST_INT)]
BlockSize = Annotated[int, Field(ge=1, le=1024)]


class Settings(BaseModel):
    """What all groups share: strict typing, no unknown settings, no NaN or infinity, and a place to run.

    A string that names a member of a registry is `Annotated[str, REGISTRY]`: sweep files are checked by that.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    seed: Natural = Field(0, description="replicate: seeds the operands or the training run")
    threads: Natural = Field(1, description="CPU threads the cell may use; 0 means all physical cores")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where it runs")

    def idle(self) -> Iterator[str]:
        """Names of settings that cannot matter beside the others; a group adds its own to those of `super()`."""
        yield from ()


def require_division(field: str, size: int, block_size: int, pads: bool = False) -> None:
    """ValueError where `block_size` does not divide the setting `field`, which is `size`.

    pads: the cell may be padded instead, and the line says so.
    """
    if size % block_size:
        instead = ", or pad = true" if pads else ""
        raise ValueError(
            f"{field}: {size} is not divisible by block_size {block_size}; accepted: "
            f"{nearest_multiples(size, block_size)} (the nearest sizes that work){instead}"
        )
