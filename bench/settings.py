"""Single settings of a cell: what a field accepts, in words, and what is wrong with a value. Imports no torch."""

from __future__ import annotations

import difflib
import math
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bench.cells import Cell
from bench.data.corpus import DATASETS
from bench.models.registry import MODELS
from bench.pruning.criteria import CRITERIA
from bench.pruning.schedules import SCHEDULES
from kernels.registry import BACKENDS, Catalogue, Registry

REGISTRIES: dict[str, Catalogue | Registry[Any]] = {
    "backend": BACKENDS,
    "baseline": BACKENDS,
    "dataset": DATASETS,
    "model": MODELS,
    "schedule": SCHEDULES,
    "criterion": CRITERIA,
}
NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def check_setting(model: type[Cell], name: str, value: Any) -> tuple[str, str] | None:
    """(what is wrong, what is accepted) of one value for one setting of a kind of cell; None where it is fine."""
    fields = model.model_fields
    if name not in fields:
        wrong = f"unknown setting of a {model.kind} cell{did_you_mean(name, list(fields))}"
        return wrong, ", ".join(fields)
    if name in REGISTRIES and isinstance(value, str):
        accepted = REGISTRIES[name].names()
        if value in accepted:
            return None
        return f"unknown {name} {shown(value)}{did_you_mean(value, accepted)}", ", ".join(accepted)
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        if any(problem["loc"][:1] == (name,) for problem in error.errors()):
            return _what_is_wrong(fields[name], value), accepted_values(name, fields[name])
    return None


def accepted_values(name: str, field: FieldInfo) -> str:
    """What a setting accepts, for people: names, or a type with its bounds."""
    if name in REGISTRIES:
        return ", ".join(REGISTRIES[name].names())
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    assert isinstance(field.annotation, type)
    signs = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
    bounds = [
        f"{sign} {getattr(bound, attribute):g}"
        for bound in field.metadata
        for kind, attribute, sign in signs
        if isinstance(bound, kind) and getattr(bound, attribute) < 1e9
    ]
    return f"{NOUNS[field.annotation]} {' and '.join(bounds)}".rstrip()


def did_you_mean(name: object, accepted: list[str]) -> str:
    """', did you mean block_size?' or nothing."""
    nearest = difflib.get_close_matches(str(name), accepted, n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""


def shown(value: Any) -> str:
    """A value as TOML writes it, cut to a readable length."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _what_is_wrong(field: FieldInfo, value: Any) -> str:
    text, number = shown(value), isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{text} is not a finite number"
    if field.annotation is float and number:
        share = any(isinstance(bound, Le | Lt) for bound in field.metadata)
        if share and 1 < value <= 100:
            return f"{text} is not a fraction: for {value:g} % write {value / 100:g}"
        return f"{text} is out of bounds"
    if field.annotation is int and number:
        return f"{text} is out of bounds" if isinstance(value, int) else f"{text} is not an integer"
    if get_origin(field.annotation) is Literal and isinstance(value, str):
        return f"unknown value {text}{did_you_mean(value, list(get_args(field.annotation)))}"
    noun = NOUNS[field.annotation] if isinstance(field.annotation, type) else "a string"
    return f"{text} is not {noun}"
