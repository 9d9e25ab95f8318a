"""Every struct of C++ or CUDA that Python fills: the same fields in the same order, and of the same kinds."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from kernels.cuda import lstm_plan, mma, recurrence, wgmma, wgmma_sdd, wgmma_tma
from kernels.cuda.tensor_map import TensorMap
from kernels.native import library as native_library
from kernels.native import lstm as native_lstm
from kernels.native import products as native_products

KERNELS = Path(native_library.__file__).parents[1]
MIRRORS: dict[str, type[ctypes.Structure]] = {  # file and struct -> what mirrors it
    "cuda/add_parts.cu Parts": mma.Parts,
    "cuda/listed.h Product": mma.Product,
    "cuda/lstm.cu Backward": recurrence.Backward,
    "cuda/lstm.cu Forward": recurrence.Forward,
    "cuda/lstm.h Plan": lstm_plan.PlanPointers,
    "cuda/sampled.h Sampled": mma.Sampled,
    "cuda/sdd_wgmma.cu Arguments": wgmma_sdd.SampledArguments,
    "cuda/wgmma_boxes.h Arguments": wgmma_tma.TmaArguments,
    "cuda/wgmma_gather.h Arguments": wgmma.Arguments,
    "native/dsd.cpp Packing": native_products.Packing,
    "native/dsd.cpp Product": native_products.Product,
    "native/lstm.cpp Backward": native_lstm.Backward,
    "native/lstm.cpp Forward": native_lstm.Forward,
    "native/pool.h Pool": native_library.Pool,
    "native/sdd.cpp Sampled": native_products.Sampled,
    "native/tiles.h Matrix": native_library.Matrix,
}
STRUCT = re.compile(r"^struct (\w+) \{  // mirrored\b[^\n]*\n(.*?)^\};", re.MULTILINE | re.DOTALL)
FUNCTION = re.compile(r"\w+ \(\*(\w+)\)\(.*\)")
KINDS: dict[object, str] = {
    ctypes.c_void_p: "pointer",
    ctypes.c_int: "int",
    ctypes.c_int64: "int64_t",
    ctypes.c_uint64: "u64",
    TensorMap: "TensorMap",
}


def declared(body: str) -> list[tuple[str, str]]:
    """(name, kind) of every field in the body of a struct: 'pointer', or the type as it is written."""
    code = re.sub(r"//[^\n]*", "", body)
    found = []
    for line in filter(None, map(str.strip, code.split(";"))):
        if function := FUNCTION.fullmatch(line):
            found.append((function[1], "pointer"))
            continue
        kind, first, rest = re.fullmatch(r"(?:const )?(\w+)(\*? \*?)(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        for each in (first.strip() + rest).split(","):
            name = each.strip()
            found.append((name.lstrip("*"), "pointer" if name.startswith("*") else kind))
    return found


def mirrored(structure: type[ctypes.Structure]) -> list[tuple[str, str]]:
    return [(name, KINDS.get(kind, kind.__name__)) for name, kind, *_ in structure._fields_]


def structs() -> dict[str, list[tuple[str, str]]]:
    """The fields of every struct that says it is mirrored, by file and name."""
    found = {}
    for folder in ("native", "cuda"):
        for path in sorted((KERNELS / folder / "src").glob("*")):
            if path.suffix in (".h", ".cu", ".cpp"):
                for name, body in STRUCT.findall(path.read_text(encoding="utf-8")):
                    found[f"{folder}/{path.name} {name}"] = declared(body)
    return found


def test_every_mirrored_struct_is_compared() -> None:
    assert sorted(structs()) == sorted(MIRRORS)


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirror_has_the_fields_of_its_struct(name: str) -> None:
    names = {"PlanPointers": "Plan"}
    wanted = [(field, names.get(kind, kind)) for field, kind in mirrored(MIRRORS[name])]
    assert structs()[name] == wanted


def test_the_parser_tells_fields_apart() -> None:
    body = (
        "    const float *a, *b;  // two, one; a comment\n    Matrix c;\n    int d, e;\n"
        "    void (*f)(void (*)(void *), int);\n    Element* g;\n"
    )
    kinds = ("pointer", "pointer", "Matrix", "int", "int", "pointer", "pointer")
    assert declared(body) == list(zip("abcdefg", kinds, strict=True))


def test_no_structure_of_ours_is_left_out() -> None:
    ours = {one for one in ctypes.Structure.__subclasses__() if one.__module__.startswith("kernels.")}
    assert ours <= set(MIRRORS.values())


def test_python_allocates_the_rows_of_an_item() -> None:
    text = (KERNELS / "native" / "src" / "parts.h").read_text(encoding="utf-8")
    assert f"constexpr int64_t span = {native_lstm.SPAN};" in text
