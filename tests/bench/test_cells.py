"""Cells: strict settings, and identities that stay what they are."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from bench.cells import KINDS, GemmCell, LstmCell, StorageCell, TrainCell
from bench.pruning.settings import Sparsifying
from bench.schema import columns

PINNED = {
    "gemm default": (GemmCell(), "5647eae804ca6776"),
    "gemm": (GemmCell(backend="torch_bsr", m=512, block_size=32, target_sparsity=0.9), "8a3fa424d1b430dc"),
    "gemm transposed": (GemmCell(op="dsd_t"), "703d765e94563037"),
    "lstm default": (LstmCell(), "3937b50c93b91d95"),
    "lstm": (LstmCell(passes="forward", hidden_size=1152, scope="weight_hh", baseline="loop_lstm"), "c3f1bd4bdaee13d1"),
    "gemm tf32": (GemmCell(math="tf32", device="cuda"), "f59e9b2af6258dc1"),
    "lstm bfloat16": (LstmCell(dtype="bfloat16", device="cuda"), "afee3df0b87eba3b"),
    "train default": (TrainCell(), "1c8392ad8a7667bf"),
    "train cubic": (TrainCell(schedule="cubic", target_sparsity=0.8, seed=2), "4b6087194515b64d"),
    "train awd": (
        TrainCell(model="awd_lstm", weight_drop=0.5, optimizer="nt_asgd", bptt_jitter=5.0),
        "39a0de8c93f8dbaa",
    ),
    "train lasso": (TrainCell(lasso="proximal", block_size=8), "a0e1a601eabdf14e"),
    "storage default": (StorageCell(), "9e45514a4160a58f"),
    "storage": (StorageCell(form="csr", indices="int64", what="activation", target_sparsity=0.9), "0f776f72921d26e1"),
}


@pytest.mark.parametrize("name", PINNED)
def test_ids_are_pinned(name: str) -> None:
    cell, wanted = PINNED[name]
    assert cell.cell_id == wanted, "stored results go by these: a new setting needs a default that changes nothing"


def test_equal_settings_written_differently_are_one_cell() -> None:
    assert TrainCell(dropout=0).cell_id == TrainCell(dropout=0.0).cell_id == TrainCell(dropout=-0.0).cell_id
    assert GemmCell(target_sparsity=1).cell_id == GemmCell(target_sparsity=1.0).cell_id
    assert GemmCell(target_sparsity=-0.0).cell_id == GemmCell(target_sparsity=0.0).cell_id
    assert GemmCell(block_size=16).cell_id == GemmCell().cell_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"block_size": 8}, {"block_size": 64, "hidden_size": 128}),
        ({"momentum": 0.9}, {}),
        ({"weight_drop": 0.5, "temporal_penalty": 1.0}, {}),
        ({"model": "awd_lstm", "dropout": 0.5}, {"model": "awd_lstm"}),
        ({"optimizer": "sgd", "beta1": 0.8, "nonmonotone": 3}, {"optimizer": "sgd"}),
        ({"beta1_dip": 0.1, "allocation": "erk"}, {"lr_schedule": "constant"}),
        ({"schedule": "cubic", "target_sparsity": 0.0}, {"schedule": "none", "target_sparsity": 0.8}),
        ({"lasso_strength": 0.1}, {"lasso_budget": 3.0}),
        (
            {"schedule": "pre", "target_sparsity": 0.5, "prune_end": 0.3},
            {"schedule": "pre", "target_sparsity": 0.5, "prune_every": 3},
        ),
        (
            {"schedule": "cubic", "target_sparsity": 0.5, "criterion": "rms"},
            {"schedule": "cubic", "target_sparsity": 0.5, "criterion": "l2"},
        ),
    ],
)
def test_settings_that_cannot_matter_make_no_new_cell(one: dict[str, object], other: dict[str, object]) -> None:
    assert TrainCell.model_validate(one).cell_id == TrainCell.model_validate(other).cell_id


def test_float32_alone_can_be_multiplied_by_tensor_cores() -> None:
    for kind in (GemmCell, LstmCell):
        assert kind(math="tf32").cell_id != kind().cell_id
        assert kind(math="tf32", dtype="bfloat16").cell_id == kind(dtype="bfloat16").cell_id


def test_settings_that_matter_make_a_new_cell() -> None:
    assert TrainCell(schedule="cubic", target_sparsity=0.5, block_size=8).cell_id != TrainCell().cell_id
    assert TrainCell(optimizer="sgd", momentum=0.9).cell_id != TrainCell(optimizer="sgd").cell_id
    assert GemmCell(seed=1).cell_id != GemmCell().cell_id
    assert len({kind().cell_id for kind in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize(
    "settings",
    [
        {"m": True},
        {"m": 16.0},
        {"m": "16"},
        {"m": 0},
        {"m": 2**40},
        {"target_sparsity": 80},
        {"target_sparsity": math.nan},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GemmCell.model_validate(settings)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"beta1_dip: 0\.9 exceeds beta1; accepted: fractions up to 0\.8"):
        TrainCell(beta1=0.8, beta1_dip=0.9)
    with pytest.raises(ValidationError, match=r"rate_by_length: torch's asgd .*; accepted: false, or nt_asgd"):
        TrainCell(optimizer="asgd", rate_by_length=True)


def test_layout_and_call_of_a_product() -> None:
    assert GemmCell(layout="row", call="launch").cell_id == GemmCell().cell_id, "what was stored before"
    ids = {
        GemmCell(layout=layout, call=call).cell_id for layout in ("row", "column") for call in ("launch", "operator")
    }
    assert len(ids) == 4
    on_gpu = {"device": "cuda", "backend": "cuda"}
    assert GemmCell(layout="column", **on_gpu).cell_id == GemmCell(**on_gpu).cell_id, "X lies as each backend needs it"
    with pytest.raises(ValidationError, match=r"call: operator is of op dsd, not of dsd_t, .*; accepted: launch"):
        GemmCell(op="dsd_t", call="operator")
    problem = GemmCell(layout="column", call="operator").problem()
    assert (problem.layout, problem.call) == ("column", "operator")
    assert GemmCell(layout="column", call="operator").kernel_tuning() == GemmCell().kernel_tuning()


def test_settings_of_a_form_that_cannot_matter_make_no_new_cell() -> None:
    csr = {"form": "csr", "indices": "int64"}
    assert StorageCell(**csr).cell_id != StorageCell(form="csr").cell_id
    for form in ("dense", "coo", "bsr"):
        assert StorageCell(form=form, indices="int64").cell_id == StorageCell(form=form).cell_id
    blocks = {"what": "activation", "block_size": 8}
    assert StorageCell(form="coo", **blocks).cell_id == StorageCell(form="coo", what="activation").cell_id
    assert StorageCell(form="bsr", **blocks).cell_id != StorageCell(form="bsr", what="activation").cell_id
    assert StorageCell(form="csr", block_size=8).cell_id != StorageCell(form="csr").cell_id, "where its zeros are"
    none = {"form": "csr", "target_sparsity": 0.0}
    assert StorageCell(block_size=8, **none).cell_id == StorageCell(**none).cell_id, "it has none"
    with pytest.raises(ValidationError, match="m: 1000 is not divisible by block_size 16; accepted: 992 or 1008"):
        StorageCell(m=1000)
    assert StorageCell(m=1000, form="coo", what="activation").grids() == {}
    assert StorageCell(m=32, k=64).grids() == {"the weight": (2, 4)}


def test_what_a_form_multiplies_with_is_checked_in_a_campaign() -> None:
    check = StorageCell(block_size=8, dtype="float64").kernel_checks()[0]
    assert check is not None and (check.backend, check.op, check.block_size, check.dtype) == (
        "native", "dsd", 8, "float64",
    )  # fmt: skip
    assert StorageCell(device="cuda").kernel_checks()[0].backend == "cuda"
    assert all(StorageCell(form=form).kernel_checks() == () for form in ("dense", "coo", "csr"))


def test_one_shot_late_in_the_run_is_a_cell() -> None:
    cell = TrainCell(schedule="one_shot", target_sparsity=0.5, prune_begin=0.9)
    assert TrainCell.model_validate(cell.canonical().model_dump()).cell_id == cell.cell_id


class Regrowing(Sparsifying):
    """A group as a new pruning method would bring one."""

    regrown: float = 0.0

    @property
    def prunes(self) -> bool:
        return self.regrown > 0.0 or super().prunes


class RegrowingCell(Regrowing, TrainCell):
    """A cell with one more group."""


def test_a_new_group_of_settings_touches_no_other() -> None:
    """That it empties blocks is known to the blocks' size and to the path of the layers.

    Without it all is as before.
    """
    wanted = {"regrown": 0.5, "path": "auto", "block_size": 8}
    assert RegrowingCell.model_validate(wanted).canonical().settings() == wanted
    assert RegrowingCell(path="auto", block_size=8).canonical().settings() == {}
    with pytest.raises(ValidationError, match="hidden_size: 128 is not divisible by block_size 12"):
        RegrowingCell(regrown=0.5, block_size=12)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_and_columns_have_different_names_and_all_are_documented(kind: str) -> None:
    fields = KINDS[kind].model_fields
    names = [*fields, *(column.name for column in columns(kind))]
    assert len(names) == len(set(names))
    assert all(field.description for field in fields.values())
    assert all(column.doc for column in columns(kind))


def test_gates_never_share_a_block_row() -> None:
    with pytest.raises(ValidationError, match="hidden_size: 24 is not divisible by block_size 16; accepted: 16 or 32"):
        LstmCell(hidden_size=24)
    with pytest.raises(ValidationError, match="input_size: 24"):
        LstmCell(input_size=24)
    assert LstmCell(input_size=24, scope="weight_hh").input_size == 24


def test_sizes_that_blocks_do_not_divide_are_refused_or_padded() -> None:
    for kind, sizes, words in (
        (GemmCell, {"m": 1000}, "m: 1000 is not divisible by block_size 16; accepted: 992 or 1008"),
        (LstmCell, {"hidden_size": 650}, "hidden_size: 650 is not divisible by block_size 16; accepted: 640 or 656"),
    ):
        with pytest.raises(ValidationError, match=rf"{words} \(the nearest sizes that work\), or pad = true"):
            kind.model_validate(sizes)
        assert kind.model_validate({**sizes, "pad": True}).cell_id != kind().cell_id
        assert kind(pad=True).cell_id == kind().cell_id, "nothing is padded there"
    assert LstmCell(input_size=650, scope="weight_hh", pad=True).canonical().pad is False
    assert GemmCell(m=1000, k=20, pad=True).grids() == {"the weight": (63, 2)}
    padded = LstmCell(hidden_size=650, input_size=20, pad=True)
    assert padded.grids() == {"weight_ih_l0": (4 * 41, 2), "weight_hh_l0": (4 * 41, 41)}
    tuned = GemmCell(m=1000, k=20, pad=True).kernel_tuning()
    assert (tuned.m, tuned.k) == (1008, 32)
