"""What the result tables hold, told to people (results/README.md) and across the parquet wall (analysis/columns.json).

Both are made of the columns' own descriptions.
"""

from __future__ import annotations

import json

from bench.cells import KINDS
from bench.schema import COLUMNS, SCHEMA_VERSION, STATUSES
from bench.storing.parquet import arrow_schema

INTRODUCTION = """# Results

One folder a sweep. `gemm.parquet`, `lstm.parquet`, `train.parquet`, `check.parquet` and `tune.parquet` hold the finished cells in the order of the sweep file, each with its
checksum in a `.sha256` file beside it (`sha256sum -c` reads it). `cells/` holds one file per finished cell and is what a
resumed run goes by; `reference/` is committed, the rest is not.

Roles: an *identity* or *setting* column says what was measured; a *result* is deterministic, equal after a resume;
*measured* differs from run to run; *provenance* says where and with what it was made. An empty value does not apply or was
not reached. There are no predictions here: those are in `analysis/`.

GPU rows: not run. `python -m bench campaign gemm_gpu lstm_gpu --out DIR --budget SECONDS` measures them; its folders go under
`reference/` as they are.

This page is made by `python -m bench columns`.
"""

NOTES = """
## Training on the kept blocks: `path`

A cell's `path` says what multiplies its pruned LSTM weights. `dense` (the default) masks them and
multiplies everything. `sparse` runs our kernels that skip empty blocks, from the first step on; where there are none, as on a CPU
without a C++ compiler, the cell is `unsupported`. `auto` lets each layer change over at its break-even sparsity, which is measured
once per machine, shape and block size, kept in your cache folder and listed by `python -m bench doctor`; without kernels it stays
dense. Either way `reason` says why. The paths add up in different orders, so the last digits of a result depend on the path, and
under `auto` on where the change-over lies; everything else is the same run: every random number, `weight_drop`'s mask of the whole
weight among them, is drawn alike.

## Training on a GPU: `device`, `precision`

`device = "cuda"` in a training cell; `precision` says how float32 is multiplied there: `ieee`, `tf32`, or
`bfloat16` (in the products of the forward pass and their gradients; parameters, optimizer and loss stay float32). The first
weights are drawn on the CPU, so a seed begins alike on both devices; dropout is drawn where it is used.
A loss that is no number is noticed up to 50 steps late, in the right epoch.

## AWD-LSTM: `model`

`model = "awd_lstm"` has every dropout and penalty of the paper as a setting; two recipes come as
sweeps. `wikitext2_paper` trains the slides' four rows by SGD, then NT-ASGD: the averages (`optimizer = "nt_asgd"`) start when
the validation perplexity stalls, and only epochs after the pruning ramp are asked, since pruning itself raises it.
`wikitext2_best` is the 90-epoch recipe (`lr_schedule = "four_phases"`, Adam) with a cubic ramp; its `activation_penalty` is 1.8
for the recipe's 3, which acts on the output before its dropout of 0.4. `wikitext2_wide` spends the
dense model's weights on wider layers. Beside them stand dense models of the same size and of as many LSTM weights as are kept.
`selection = "best"` reports the epoch of the lowest validation perplexity *at final sparsity*; `reported_test_ppl` is its test
perplexity. The three are meant for a GPU; `wikitext2_paper_small` and its like are for a CPU, whole vocabulary, small layers.

## The finished model: `export`

The last row of a cell that pruned says what pruning left for inference: the masks merged into the weights, the weights stored as BSR,
written, loaded again, evaluated and timed against the dense model.

Its weights are frozen: `BSRMatrix.freeze()` copies the values where nobody can change them, so that the CPU's
kernels pack them once and keep that. It costs the copy and one or two packed ones as large; `unfreeze()` gives an ordinary matrix. Of an ordinary one the
values are packed at each product, about 0.3 ms for W 4608 × 1152 at ρ 0.8, which is what the product takes at n = 20: torch does
not tell of every change.
"""


def documentation() -> str:
    """The text of results/README.md."""
    parts = [INTRODUCTION, "## How a cell can end\n", *(f"- `{name}`: {doc}" for name, doc in STATUSES.items())]
    for kind in COLUMNS:
        parts += [f"\n## {kind}.parquet\n", "| column | type | role | unit | meaning |", "|---|---|---|---|---|"]
        for field in arrow_schema(kind):
            about = {key.decode(): value.decode().replace("|", "\\|") for key, value in field.metadata.items()}
            parts.append(
                f"| `{field.name}` | {_spoken(field.type)} | {about['role']} | {about['unit']} | {about['doc']} |"
            )
    return "\n".join(parts) + "\n" + NOTES


def machine_readable() -> str:
    """The text of analysis/columns.json: a column a line, settings with their default."""
    tables = []
    for kind in COLUMNS:
        fields, lines = KINDS[kind].model_fields, []
        for column in arrow_schema(kind):
            about = {key.decode(): value.decode() for key, value in column.metadata.items() if key != b"doc"}
            default = {"default": fields[column.name].get_default()} if about["role"] == "setting" else {}
            lines.append(json.dumps({"name": column.name, "type": _spoken(column.type), **about, **default}))
        tables.append(f'    "{kind}": [\n      ' + ",\n      ".join(lines) + "\n    ]")
    head = f'  "schema_version": {SCHEMA_VERSION},\n  "statuses": {json.dumps(list(STATUSES))},\n'
    return f'{{\n{head}  "tables": {{\n' + ",\n".join(tables) + "\n  }\n}\n"


def _spoken(type_: object) -> str:
    return str(type_).replace("list<element: ", "list<").replace("list<item: ", "list<")
