"""Layers of a module that a user's factory makes: what `kernels.sparsify` would replace, and what goes through it."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bench.commands.advising.layers import AdviceError, Layer
from bench.commands.advising.weights import Weights
from kernels.sparsify import Survey

RECURRENT = {nn.LSTM: "lstm", nn.GRU: "gru"}


class Made(NamedTuple):
    """A model, in evaluation, and what it is called with; inputs: None where the factory gives a model alone."""

    model: nn.Module
    inputs: tuple[Any, ...] | None
    keywords: dict[str, Any]


def make(named: str) -> Made:
    """What 'package.module:factory' gives. AdviceError, one line, where there is none such or it raises."""
    place, _, name = named.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:  # a console script looks beside itself alone
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(place)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise AdviceError(f"{named}: there is no module {error.name}; accepted: package.module:factory") from None
    except AttributeError:
        raise AdviceError(f"{named}: {place} has no {name}; accepted: package.module:factory") from None
    except (Exception, SystemExit) as error:
        raise AdviceError(f"{named}: importing {place} raised {_told(error)}") from None
    if not callable(found):
        raise AdviceError(f"{named}: {name} is no function; accepted: one that returns a torch.nn.Module")
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise AdviceError(f"{named}: the factory raised {_told(error)}") from None
    return _checked(named, made)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]


def _checked(named: str, made: Any) -> Made:
    model, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        what = type(model).__name__
        raise AdviceError(f"{named}: the factory returned {what}; accepted: a torch.nn.Module, or (module, inputs)")
    if given is None:
        return Made(model.eval(), None, {})
    keywords = dict(given) if isinstance(given, dict) else {}
    inputs = () if keywords else tuple(given) if isinstance(given, tuple | list) else (given,)
    return Made(model.eval(), inputs, keywords)


def to(made: Made, device: str) -> Made:
    """Model and inputs on a device."""
    return Made(made.model.to(device), moved(made.inputs, device), moved(made.keywords, device))


def moved(value: Any, device: str) -> Any:
    """A value with every tensor in it on a device."""
    if isinstance(value, Tensor | PackedSequence):
        return value.cuda() if device == "cuda" else value.cpu()
    if isinstance(value, tuple | list):
        return type(value)(moved(each, device) for each in value)
    return {name: moved(each, device) for name, each in value.items()} if isinstance(value, dict) else value


def layers_of(named: str, made: Made, tokens: int, batch: int, steps: int) -> tuple[list[Layer], dict[str, Weights]]:
    """What a model holds, and the weights of each layer by its name.

    With example inputs the model is called once, and what went through each layer is what it is timed with.
    AdviceError where it raises.
    """
    survey = Survey(made.model, None, None, [])
    held: dict[str, Weights] = {}
    found: list[Layer] = []
    seen = _seen(named, made, list(survey.chosen)) if made.inputs is not None else {}
    for module in survey.chosen:
        kind, name = RECURRENT.get(type(module), "linear"), survey.names[module][0]
        for layer, weights in _layers(module, kind, name):
            layer = replace(layer, tokens=tokens, batch=batch, steps=steps)
            found.append(_as_called(layer, seen.get(module)) if made.inputs is not None else layer)
            held[layer.name] = weights
    parts = dict(made.model.named_modules(remove_duplicate=False))
    for name, reason in survey.left.items():
        sides = _sides(parts.get(name))
        found.append(Layer(name, "other", sides[0], sides[1], reason=reason))
    return found, held


def _sides(module: nn.Module | None) -> tuple[int, int]:
    """The first two sides of the first weight of a module that stays as it is, (1, 1) where that cannot be told."""
    for each in module.parameters(recurse=False) if module is not None else ():
        if not nn.parameter.is_lazy(each) and each.ndim >= 2:
            return each.shape[0], each.shape[1]
    return 1, 1


def _layers(module: nn.Module, kind: str, name: str) -> Iterator[tuple[Layer, Weights]]:
    """The layers of a module that can be replaced: one, or one for each level and direction."""
    if isinstance(module, nn.Linear):
        weight = module.weight.detach()
        rows, cols = weight.shape
        yield Layer(f"{name}.weight" if name else "weight", kind, rows, cols), {"weight": weight}
        return
    places = [each.removeprefix("weight_hh") for each in module._parameters if each.startswith("weight_hh")]
    for place in places:
        into, recurrent = (getattr(module, f"weight_{which}{place}").detach() for which in ("ih", "hh"))
        weights = {f"weight_ih{place}": into, f"weight_hh{place}": recurrent}
        named = f"{name}.weight{place}" if name else f"weight{place}"
        yield Layer(named, kind, recurrent.shape[1], into.shape[1]), weights


Load = Counter[tuple[int, int]]  # (columns, 1) of a linear layer, (batch, steps) of another, to the number of calls


def _seen(named: str, made: Made, modules: Sequence[nn.Module]) -> dict[nn.Module, Load]:
    """What goes through each module in one call of the model."""
    loads: dict[nn.Module, Load] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        loads.setdefault(module, Counter())[_load(module, x)] += 1

    with ExitStack() as hooks:
        for module in modules:
            handle = module.register_forward_pre_hook(look, with_kwargs=True)
            hooks.callback(handle.remove)
        with torch.no_grad():
            call(made.model, made, f"{named}: the model")
    return loads


def _load(module: nn.Module, x: Any) -> tuple[int, int]:
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0]), len(x.batch_sizes)
    if isinstance(module, nn.Linear):
        return x.numel() // module.in_features, 1
    if x.ndim == 2:
        return 1, x.shape[0]
    steps, batch = (x.shape[1], x.shape[0]) if getattr(module, "batch_first", False) else (x.shape[0], x.shape[1])
    return batch, steps


def _as_called(layer: Layer, load: Load | None) -> Layer:
    """A layer with what went through it; of calls with several sizes the commonest stands for all."""
    if not load:
        return replace(layer, reason="the example inputs never reach it")
    (first, second), _ = load.most_common(1)[0]
    calls = sum(times * one * other for (one, other), times in load.items()) / max(first * second, 1)
    assumed = "" if len(load) == 1 else f"called with {len(load)} sizes: timed with the commonest"
    if not first * second:
        return replace(layer, reason="the example inputs have nothing for it")
    if layer.is_recurrent:
        return replace(layer, calls=calls, assumed=assumed, batch=first, steps=second)
    return replace(layer, calls=calls, assumed=assumed, tokens=first)


def call(model: nn.Module, made: Made, what: str) -> Any:
    """The output of a model of `made` on its inputs. AdviceError, one line, where it raises."""
    try:
        return model(*(made.inputs or ()), **made.keywords)
    except (Exception, SystemExit) as error:
        raise AdviceError(f"{what} raised {_told(error)} on its example inputs") from None


def tensors(value: Any) -> list[Tensor]:
    """Every floating-point tensor of an output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, PackedSequence):
        return [value.data]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [each for one in inner for each in tensors(one)]


@contextmanager
def pandas_allowed() -> Iterator[None]:
    """A user's code may import what this program keeps away from itself."""
    kept = [each for each in sys.meta_path if type(each).__name__ == "_WithoutPandas"]
    for each in kept:
        sys.meta_path.remove(each)
    try:
        yield
    finally:
        sys.meta_path[:0] = kept
