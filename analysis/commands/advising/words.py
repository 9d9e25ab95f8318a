"""An answer in words: a verdict for each goal, and tables whose every cell is text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis import theory
from analysis.commands.advising.answers import GOAL, INTERPOLATED, SHOWN, Answer, Curve, Point
from analysis.commands.advising.references import Cost
from analysis.commands.advising.stored import Row
from analysis.stats import times
from analysis.tables import NOTHING
from analysis.theory import Breakeven

PASSES = {"forward": "Latency", "training": "Training time"}
SHORT_NAMES = 40  # letters of a list of names in a cell


def verdicts(found: Answer) -> list[str]:
    """A sentence for latency, training time and memory each."""
    return [*(_speed(found, passes, goal) for passes, goal in PASSES.items()), _memory(found)]


def _speed(found: Answer, passes: str, goal: str) -> str:
    curve = found.best(passes)
    if curve is None:
        if passes in found.measured.values("passes"):
            if all(row["kind"] == "gru" for row in found.measured.timed):
                return f"{goal}: of GRU layers the products alone were timed; a factory with example inputs decides."
            return f"{goal}: no cell of it has a time yet: {_why_nothing(found)}."
        return f"{goal}: not measured; python -m bench advise with --passes {passes} measures it."
    point = curve.at(GOAL) or curve.sparsest
    assert point is not None
    whole = curve in found.model
    subject = "the whole model, end to end, is" if whole else "the layers together are"
    line = f"{goal}: {_pays(curve)}; at {point.sparsity:g} {subject} {_compared(point)}"
    if whole:
        line += _of_layers(found, curve, point.sparsity)
    if passes == "training":
        ramps = [each for each in found.integrals if (each.block_size, each.target) == (curve.block_size, GOAL)]
        for each in (each for each in ramps if each.ramp == "cubic"):
            line += f"; over a run pruned to {GOAL:g} on a cubic ramp ~{times(each.measured)}"
            line += (
                f" (interpolated between {each.measured.n} measured sparsities and dense; theory {each.theory:.2f}×)"
            )
    return line + _doubts(point) + "."


def _of_layers(found: Answer, curve: Curve, sparsity: float) -> str:
    """' (its layers alone 3.90× [3.17, 4.00]; about 92 % of it, ...)'; nothing where they have no times."""
    layers = next((each for each in found.whole if _key(each) == _key(curve)), None)
    point, share = layers.at(sparsity) if layers else None, found.share[curve.passes]
    if point is None or math.isnan(share):
        return ""
    return f" (its layers alone {times(point.speedup)}; about {100 * share:.0f} % of it, by times of two moments)"


def _key(curve: Curve) -> tuple[str, int]:
    return curve.passes, curve.block_size


def _pays(curve: Curve) -> str:
    """'block 32 pays from ρ 0.34 [0.31, 0.38] on; not worth it below'."""
    name, measured = f"block {curve.block_size}", curve.measured
    kinds = {curve.breakeven.kind, *(each.kind for each in curve.bounds)}
    if kinds == {"always"} and len(measured) == 1:
        return f"{name} pays at ρ {measured[0].sparsity:g}, the only sparsity measured"
    if kinds == {"always"}:
        return f"{name} pays at every sparsity measured, ρ {measured[0].sparsity:g} to {measured[-1].sparsity:g}"
    if curve.breakeven.kind == "never":
        return f"not worth it: {name}, the best, is slower than dense even at ρ {measured[-1].sparsity:g}"
    if curve.breakeven.kind == "unknown":
        return f"{name} has no break-even, for want of pairs"
    return f"{name} pays from ρ {spoken_breakeven(curve)} on, and is not worth it below"


def _compared(point: Point) -> str:
    """'2.10× [2.00, 2.20] faster', or at what share of the speed of dense it runs."""
    return (
        f"{times(point.speedup)} faster" if point.speedup.value >= 1.0 else f"at {times(point.speedup)} the dense speed"
    )


def _doubts(point: Point) -> str:
    words = []
    if point.how == INTERPOLATED:
        words.append("interpolated between measured sparsities")
    if point.noisy:
        words.append("noisy: other work ran beside it; --retry on a quiet machine times it again")
    return f" ({'; '.join(words)})" if words else ""


def _why_nothing(found: Answer) -> str:
    rows = [row for row in found.measured.cells.values() if row["status"] != "ok"]
    return f"{rows[0]['status']}: {rows[0]['reason']}" if rows else "the time was up before; run it again"


def _memory(found: Answer) -> str:
    """Of the block size that is the fastest, or the first."""
    best = found.best("forward") or found.best("training")
    size = best.block_size if best else min(key[0] for key in found.bytes)
    known = {at: both for (block, at), both in found.bytes.items() if block == size}
    at = GOAL if GOAL in known else max(known)
    dense, sparse = known[at]
    line = (
        f"Memory: at ρ {at:g} in blocks of {size} the weights of these layers take {sparse / dense:.2f} of their "
        f"bytes, {megabytes(sparse)} of {megabytes(dense)} in float32"
    )
    return f"{line}; {_smaller_from(known)}."


def _smaller_from(known: dict[float, tuple[int, int]]) -> str:
    """Bytes are linear in density, so two sparsities tell where they cross those of dense."""
    (low, (dense, one)), (high, (_, other)) = min(known.items()), max(known.items())
    if one == other:
        return "smaller than dense there" if one < dense else "not smaller than dense there"
    crossing = max(0.0, low + (high - low) * (one - dense) / (one - other))
    return f"smaller than dense from ρ {crossing:.2f} on" if crossing < 1.0 else "never smaller than dense"


def spoken_breakeven(curve: Curve) -> str:
    """'0.34 [0.31, 0.38]'; '≤0.2' where it pays at all that was measured, '>0.95' where at nothing; else 'unknown'."""
    middle, low, high = (_end(each, curve) for each in (curve.breakeven, *curve.bounds))
    return middle if middle == low == high else f"{middle} [{low}, {high}]"


def _end(crossing: Breakeven, curve: Curve) -> str:
    if crossing.sparsity is not None:
        return f"{crossing.sparsity:.2f}"
    first, last = curve.measured[0].sparsity, curve.measured[-1].sparsity
    return {"always": f"≤{first:g}", "never": f">{last:g}"}.get(crossing.kind, "unknown")


def marked(point: Point | None, interval: bool = False) -> str:
    """'2.31×'; '~' before what was interpolated, '?' after what is noisy; '–' where nothing was measured."""
    if point is None:
        return NOTHING
    value = times(point.speedup) if interval else f"{point.speedup.value:.2f}×"
    beyond = point.sparsity < 1.0 and point.speedup.low > BEYOND * theory.speedup(point.sparsity)
    return ("~" if point.how == INTERPOLATED else "") + value + ("?" if point.noisy else "") + ("!" if beyond else "")


BEYOND = 1.25  # times theory: no product skips more than its empty blocks
MARKS = (
    "~ interpolated between measured sparsities; ? noisy; ! far above 1/(1−ρ), so dense ran slowly; – not measured; "
    "≤ from the lowest measured on; > at none measured"
)


def layer_table(found: Answer, interval: bool = False) -> pd.DataFrame:
    """Layers alike, by block size: from where it pays, and the speedup at each sparsity of SHOWN."""
    several = len(found.measured.values("passes")) > 1
    rows = []
    for layer in found.layers:
        for curve in layer.curves.values():
            name = f"{layer.label} ({curve.passes})" if several else layer.label
            rows.append(
                [name, str(curve.block_size), _pays_from(curve), *(marked(curve.at(each), interval) for each in SHOWN)]
            )
    return pd.DataFrame(rows, columns=["layer", "block", "pays from ρ", *(f"ρ {each:g}" for each in SHOWN)])


def whole_table(found: Answer) -> pd.DataFrame:
    """All layers together, and the whole model end to end: a column for each block size."""
    sizes = sorted({curve.block_size for curve in (*found.whole, *found.model)})
    rows = []
    for what, curves in (("layers", found.whole), ("end to end", found.model)):
        for passes in dict.fromkeys(curve.passes for curve in curves):
            mine = {curve.block_size: curve for curve in curves if curve.passes == passes}
            name = what if passes == "forward" else f"{what}, training"
            rows.append([name, "from", *(_pays_from(mine.get(size)) for size in sizes)])
            for at in SHOWN:
                points = [mine[size].at(at) if size in mine else None for size in sizes]
                rows.append([name, f"{at:g}", *(marked(point, True) for point in points)])
    return pd.DataFrame(rows, columns=["what", "ρ", *(f"block {size}" for size in sizes)])


def _pays_from(curve: Curve | None) -> str:
    return spoken_breakeven(curve) if curve is not None and curve.measured else NOTHING


def lost_table(found: Answer, each_layer: bool = False) -> pd.DataFrame:
    """The share of the squared norm that magnitude takes away, at random beside it; of each layer, or the range."""
    keys = sorted({key for layer in found.layers for key in layer.lost if key[1] in SHOWN})
    rows = []
    for size in sorted({key[0] for key in keys}):
        mine = [layer for layer in found.layers if any(key[0] == size for key in layer.lost)]
        groups = [(layer.label, [layer]) for layer in mine] if each_layer else [("all layers", mine)]
        for name, layers in groups:
            rows.append([name, str(size), *(_lost([each.lost.get((size, at)) for each in layers]) for at in SHOWN)])
    return pd.DataFrame(rows, columns=["layer", "block", *(f"ρ {each:g}" for each in SHOWN)])


def _lost(found: Sequence[tuple[float, float] | None]) -> str:
    """'0.31 to 0.45 (random 0.50)'."""
    known = [each for each in found if each is not None]
    if not known:
        return NOTHING
    low, high = (f"{of(each[0] for each in known):.2f}" for of in (min, max))
    span = low if low == high else f"{low} to {high}"
    return f"{span} (random {sum(each[1] for each in known) / len(known):.2f})"


def bytes_table(found: Answer) -> pd.DataFrame:
    """Bytes of the weights of all layers, by block size."""
    rows = []
    for size in sorted({key[0] for key in found.bytes}):
        dense = next(both[0] for key, both in found.bytes.items() if key[0] == size)
        mine = [found.bytes.get((size, at)) for at in SHOWN]
        rows.append([str(size), megabytes(dense), *(megabytes(each[1]) if each else NOTHING for each in mine)])
    return pd.DataFrame(rows, columns=["block", "dense", *(f"ρ {each:g}" for each in SHOWN)])


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def integral_table(found: Answer) -> pd.DataFrame:
    """Training time over a run, by ramp."""
    rows = [
        [str(each.block_size), each.ramp, f"{each.target:g}", f"{each.theory:.2f}×", f"~{times(each.measured)}"]
        for each in found.integrals
    ]
    return pd.DataFrame(rows, columns=["block", "ramp", "target ρ", "theory", "measured"])


def output_table(found: Answer) -> pd.DataFrame:
    """Of the whole model: how far its outputs are from those with zeros, and from those of the unpruned one."""
    rows = [
        [row["passes"], str(row["block_size"]), f"{row['target_sparsity']:g}", _status(row), *_outputs(row)]
        for row in sorted(found.measured.model, key=lambda row: (row["block_size"], row["target_sparsity"]))
    ]
    return pd.DataFrame(rows, columns=["passes", "block", "ρ", "status", "error", "cosine", "bytes"])


def _status(row: Row) -> str:
    return str(row["status"]) if row["status"] == "ok" else f"{row['status']}: {row['reason']}"


def _outputs(row: Row) -> list[str]:
    if row["error"] is None:
        return [NOTHING] * 3
    sizes = f"{megabytes(row['sparse_bytes'])} of {megabytes(row['dense_bytes'])}"
    return [f"{row['error']:.1e}", f"{row['cosine']:.3f}", sizes]


def cost_table(costs: Sequence[Cost]) -> pd.DataFrame:
    rows = [[each.what, str(each.block_size), f"{each.sparsity:g}", each.cost] for each in costs]
    return pd.DataFrame(rows, columns=["network", "block", "ρ", "cost against dense"])


OTHERS = "These are other models than yours: what yours loses only its own training can tell."


def left_table(found: Answer) -> pd.DataFrame:
    """What cannot be block-sparse, and why."""
    rows = [[row["name"], row["sizes"], row["reason"]] for row in found.measured.layers if row["block_size"] is None]
    rows += [
        [layer.label, f"block {size}", reason] for layer in found.layers for size, reason in layer.why_dense.items()
    ]
    return pd.DataFrame(rows, columns=["weight", "sizes", "why it stays dense"])


def shortly(names: Sequence[str]) -> str:
    """A list of names, cut."""
    whole = ", ".join(names)
    return whole if len(whole) <= SHORT_NAMES else f"{names[0]} and {len(names) - 1} more"


def notes(found: Answer) -> list[str]:
    """What was assumed of layers, each once, with the layers."""
    said: dict[str, list[str]] = {}
    for layer in found.layers:
        for note in layer.notes:
            said.setdefault(note, []).extend(layer.names)
    return [f"{shortly(names)}: {note}." for note, names in said.items()]


def caveats(found: Answer) -> list[str]:
    """What a reader should know of these figures."""
    measured = found.measured
    lines = [f"In the tables: {MARKS}."]
    if not measured.model:
        lines.append(
            "What is not in these layers (attention, norms, embeddings, the output layer of a file) was not timed: the "
            "speedup of a whole model is less. A factory that returns (module, example inputs) has it measured."
        )
    if "training" in measured.values("passes") and any(row["kind"] != "lstm" for row in measured.timed):
        lines.append(
            "Training of linear and GRU layers is three products of each, prepared beforehand: what packing new values "
            "takes after each step is not in it."
        )
    if any(row["kind"] == "gru" for row in measured.timed):
        lines.append(
            "Of a GRU its products alone were timed, and they are not in what is said of all layers together: torch's "
            "layer is fused, a block-sparse one goes step by step. End to end both are measured."
        )
    return [*lines, OTHERS]


def head(found: Answer) -> str:
    """Where and with what it was measured."""
    rows = [row for row in found.measured.cells.values() if row["status"] == "ok"]
    if not rows:
        return "nothing is measured yet"
    row = rows[-1]
    threads = f"{row['threads_used']} thread" + ("" if row["threads_used"] == 1 else "s")
    where = f"{row['device_name']}, {threads}" if row["device"] == "cpu" else str(row["device_name"])
    return f"{len(rows)} cells on {where}, torch {row['torch']}"
