"""Layers read from a file of weights, by names and shapes: a state_dict does not say what its layers are.

Nothing in a file is executed: safetensors hold numbers alone, and of torch's files only tensors are read.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.commands.advising.layers import GATES, AdviceError, Layer

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
RECURRENT = re.compile(r"(?P<prefix>.*?)weight_(?P<which>ih|hh|hr)(?P<place>(_l\d+)?(_reverse)?)(_raw)?")
EMBEDDINGS = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|emb|lut)(\.\w+)?\.weight$|^encoder\.weight$", re.IGNORECASE)
HEADS = re.compile(r"(^|\.)(lm_head|decoder|output_projection|cls\.\w+)(\.decoder)?\.weight$")
CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")
OTHER_RUNS = re.compile(r"optim|scheduler|momentum|exp_avg|ema_", re.IGNORECASE)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of weights that can be pruned

Weights = dict[str, Tensor]


def read(path: Path) -> Weights:
    """The tensors of a file by name, on the CPU. AdviceError, one line, where it is none or holds more than tensors."""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a protocol that is then refused, in lines of torch's
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AdviceError(
            f"{path}: holds pickled objects, which would be executed; accepted: a state_dict, as "
            "torch.save(model.state_dict(), FILE) writes it, or a .safetensors file"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        why = "is empty or cut off" if isinstance(error, EOFError) else _told(error)
        raise AdviceError(f"{path}: {why}; accepted: a file of weights that torch.save has written") from None
    found = {path: each for path, each in _flat(content, ()) if path}
    if not found:
        raise AdviceError(f"{path}: holds no tensors by name; accepted: a state_dict, as model.state_dict() gives it")
    return _without_container(found)


def _safetensors(path: Path) -> Weights:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise AdviceError(f"{path}: {error.name} is not installed; accepted: pip install safetensors") from None
    try:
        return dict(load_file(path, device="cpu"))
    except (OSError, SafetensorError, ValueError) as error:
        raise AdviceError(f"{path}: {_told(error)}; accepted: a .safetensors file") from None


def _told(error: BaseException) -> str:
    """The first line of what a library says, without its path."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return (getattr(error, "strerror", None) or line)[:120].rstrip(".")


def _flat(content: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor of nested mappings, but for the state of optimizers."""
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, Mapping):
        for name, each in content.items():
            if isinstance(name, str) and not (len(path) == 0 and OTHER_RUNS.search(name)):
                yield from _flat(each, (*path, name))


def _without_container(found: Mapping[tuple[str, ...], Tensor]) -> Weights:
    """Names within the one mapping that holds the tensors, as `model_state`, where there is one."""
    holders = {path[:-1] for path in found}
    if len(holders) == 1:
        return {path[-1]: each for path, each in found.items()}
    return {".".join(path): each for path, each in found.items()}


def layers_of(weights: Weights, tokens: int, batch: int, steps: int) -> tuple[list[Layer], dict[str, Weights]]:
    """What a file holds, and the weights of each layer by its name, [rows, cols] as torch.nn has them.

    Weights of fewer than two sides, norms and biases, are not listed.
    """
    found: list[Layer] = []
    held: dict[str, Weights] = {}
    for (prefix, place), parts in _recurrent(weights).items():
        layer = _recurrent_layer(prefix, place, parts, batch, steps)
        found.append(layer)
        held[layer.name] = {} if layer.reason else {f"weight_{which}{place}": each for which, each in parts.items()}
    embeddings: Weights = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or RECURRENT.fullmatch(name):
            continue
        layer, as_linear = _layer(name, weight, weights, embeddings, tokens)
        found.append(layer)
        held[name] = {} if layer.reason else {"weight": as_linear}
        if layer.reason.startswith("an embedding"):
            embeddings[name] = weight
    return found, held


def _recurrent(weights: Weights) -> dict[tuple[str, str], Weights]:
    """(prefix, place) -> ih, hh and, with projections, hr."""
    found: dict[tuple[str, str], Weights] = {}
    for name, weight in weights.items():
        match = RECURRENT.fullmatch(name)
        if match and weight.ndim == 2:
            found.setdefault((match["prefix"], match["place"]), {})[match["which"]] = weight
    return found


def _recurrent_layer(prefix: str, place: str, parts: Weights, batch: int, steps: int) -> Layer:
    name = f"{prefix}weight{place}"
    into, recurrent = parts.get("ih"), parts.get("hh")
    if into is None or recurrent is None:
        any_of = next(iter(parts.values()))
        return Layer(
            name, "other", any_of.shape[0], any_of.shape[1], reason="one of weight_ih and weight_hh is missing"
        )
    rows, hidden = recurrent.shape
    cols = into.shape[1]
    kind = next((kind for kind, gates in GATES.items() if rows == gates * hidden == into.shape[0]), None)
    if "hr" in parts:
        return Layer(name, "other", rows, cols, reason="an LSTM with projections, which a block-sparse layer has not")
    if kind is None:
        return Layer(name, "other", rows, cols, reason=f"{rows} rows are neither 4 nor 3 times {hidden} units")
    if not place.startswith("_l"):
        return Layer(name, "other", rows, cols, reason=f"a {kind.upper()}Cell, which sparsify leaves")
    assumed = f"{kind.upper()}: {rows} rows are {GATES[kind]} times {hidden} units"
    return Layer(name, kind, hidden, cols, batch=batch, steps=steps, assumed=assumed, reason=_odd(recurrent))


def _layer(name: str, weight: Tensor, weights: Weights, embeddings: Weights, tokens: int) -> tuple[Layer, Tensor]:
    """A weight that is no LSTM's or GRU's, and its values [out, in]."""
    rows, cols = weight.shape[0], weight.shape[1]
    if weight.ndim > 2:
        return Layer(name, "other", rows, cols, reason=f"{weight.ndim} sides: a convolution or the like"), weight
    if reason := _no_linear(name, weight, weights, embeddings):
        return Layer(name, "other", rows, cols, reason=reason), weight
    assumed, bias = "a Linear layer: nothing in its name says otherwise", weights.get(_bias(name))
    if bias is not None and bias.ndim == 1 and bias.shape[0] == cols != rows:
        weight, assumed = weight.mT, f"stored [in, out], as GPT-2's Conv1D: its bias has {cols} elements; transposed"
    elif CONV1D.search(name) and rows == cols:
        weight, assumed = weight.mT, "stored [in, out], as GPT-2's Conv1D, by its name; transposed"
    elif bias is not None and bias.shape == (rows,):
        assumed = f"a Linear layer: its bias has {rows} elements"
    rows, cols = weight.shape
    return Layer(name, "linear", rows, cols, tokens=tokens, assumed=assumed, reason=_odd(weight)), weight


def _no_linear(name: str, weight: Tensor, weights: Weights, embeddings: Weights) -> str:
    """Why a 2-d weight is taken for no Linear layer's, or nothing."""
    for other, embedding in embeddings.items():
        if HEADS.search(name) and embedding.shape == weight.shape and torch.equal(embedding, weight):
            return f"tied to {other}: equal values"
    if EMBEDDINGS.search(name) and _bias(name) not in weights:
        return "an embedding, by its name: rows are looked up, not multiplied"
    if name.endswith("in_proj_weight"):
        return "of MultiheadAttention, which sparsify leaves: query, key and value in one"
    if not name.endswith("weight"):
        return "its name is no layer's weight"
    if "norm" in name.lower():
        return "of a normalisation, by its name"
    return ""


def _bias(name: str) -> str:
    return f"{name.removesuffix('weight')}bias"


def _odd(weight: Tensor) -> str:
    if weight.dtype not in DTYPES:
        return f"its values are {str(weight.dtype).removeprefix('torch.')}: quantised weights are not pruned"
    if weight.layout != torch.strided:
        return f"its values are {str(weight.layout).removeprefix('torch.')}: sparse already"
    if weight.is_meta:
        return "it has no values: it is on the meta device"
    return "" if weight.numel() else "it has no elements"
