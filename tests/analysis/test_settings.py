"""Settings of cells: each tells unlike rows apart, so that only cells that differ in their seed are replicates."""

from __future__ import annotations

import pytest

from analysis.compare import SETTINGS
from analysis.load import TABLES, UNLIKE
from analysis.loading.schema import columns
from analysis.runs import MODEL_SETTINGS, PRUNING_SETTINGS

NAMED = {**SETTINGS, "train": (*MODEL_SETTINGS, *PRUNING_SETTINGS)}


@pytest.mark.parametrize("table", TABLES)
def test_cells_are_replicates_only_where_no_setting_but_the_seed_differs(table: str) -> None:
    settings = {column.name for column in columns(table) if column.role == "setting"}
    assert settings - {*NAMED[table], *UNLIKE[table]} == {"seed"}
