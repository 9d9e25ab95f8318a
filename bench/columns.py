"""What the result tables hold, told to people (results/README.md) and across the parquet wall (analysis/columns.json).

Both are made of the columns' own descriptions.
"""

from __future__ import annotations

import json

from bench.cells import KINDS
from bench.parquet import arrow_schema
from bench.schema import COLUMNS, SCHEMA_VERSION, STATUSES

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
    return "\n".join(parts) + "\n"


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
