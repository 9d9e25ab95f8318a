"""Single settings of a cell: what a field accepts, in words, and what is wrong with a value. Imports no torch."""

from __future__ import annotations

import datetime
import difflib
import math
import re
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
NAMED: dict[type, str] = {list: "list", dict: "table"}
LONGEST_SHOWN = 60  # letters of a value or a key in a line


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
        f"{sign} {_plain(getattr(bound, attribute))}"
        for bound in field.metadata
        for kind, attribute, sign in signs
        if isinstance(bound, kind)
    ]
    return f"{NOUNS[field.annotation]} {' and '.join(bounds)}".rstrip()


def did_you_mean(name: object, accepted: list[str]) -> str:
    """', did you mean block_size?' or nothing."""
    if not isinstance(name, str) or len(name) > LONGEST_SHOWN:
        return ""
    nearest = difflib.get_close_matches(name, accepted, n=1, cutoff=0.5)
    return f", did you mean {nearest[0]}?" if nearest else ""


def shown(value: Any) -> str:
    """A value as TOML writes it, cut to a readable length; of one that cannot be written out, what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    try:
        return cut(repr(value))
    except ValueError:  # Python writes no integer of so many digits
        if isinstance(value, int):
            return f"an integer of {value.bit_length()} bits"
        return f"a {NAMED[type(value)]} with an integer of too many digits"
    except RecursionError:
        return f"a {NAMED[type(value)]} nested too deep"


def key_shown(key: str) -> str:
    """A key as TOML writes it, cut to a readable length: in quotes unless it is a bare one."""
    return cut(key if re.fullmatch("[A-Za-z0-9_-]+", key) else repr(key))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


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
