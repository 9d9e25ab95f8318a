"""Sweeps as they are read: their tables, the parts that stand for them, and the widest over several sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made
import pandas as pd
import pytest

from analysis import load, study
from analysis.load import TABLES
from analysis.report import write_figures, write_report
from analysis.reporting import sections
from analysis.runs import runs
from analysis.studying.realised import realised
from bench.cells import LstmCell

Sweep = Callable[..., Path]


def test_every_table_of_a_sweep_is_read_and_what_was_not_run_has_no_part(sweep: Sweep) -> None:
    found = study.read(sweep(lstm=made.lstm_frame((256,)), train=made.sparse_frame(1)))
    assert list(found.tables) == ["lstm", "train"] and found.parts("gemm") == []
    baselines = found.main("lstm").rows["baseline"]
    assert baselines.nunique() == 1 and len(baselines) < len(found.tables["lstm"])


def test_a_part_is_made_once_and_what_follows_from_it_is_computed_once() -> None:
    found = made.study(gemm=made.gemm_frame(), train=made.sparse_frame(1))
    assert found.main("train") is found.parts("train")[0] is found.main("train")
    for part, names in (
        (found.main("gemm"), ("points",)),
        (found.main("train"), ("runs", "replicates", "realised", "gains")),
    ):
        assert all(len(getattr(part, name)) and getattr(part, name) is getattr(part, name) for name in names)


@pytest.mark.parametrize("table", TABLES)
def test_what_was_not_run_is_a_part_without_rows(table: str) -> None:
    nothing = made.study().main(table)
    assert nothing.table == table and nothing.rows.empty and not nothing.is_measured
    if table == "train":
        assert nothing.runs.empty and nothing.replicates.empty and nothing.realised.empty and nothing.gains.empty
    elif table == "lstm":
        assert nothing.points.empty and nothing.main_layer().rows.empty
    else:
        assert nothing.points.empty and nothing.shapes() == []
    if table == "storage":
        assert nothing.crossovers.empty and nothing.main_matrix().rows.empty


def test_the_widest_part_over_several_sweeps() -> None:
    small, large = made.lstm_frame((256,)), made.lstm_frame((256, 512))
    sweeps = [made.study(lstm=small), made.study(lstm=large), made.study()]
    widest = study.widest(sweeps, "lstm", over="baseline").rows
    assert len(widest) == len(large) and set(widest["baseline"]) == {"torch_lstm", "loop_lstm"}
    assert study.widest(sweeps, "gemm").rows.empty and study.widest([], "lstm").rows.empty


def test_runs_with_probes_come_before_more_runs_without() -> None:
    many, probed = made.train_frame(seeds=3), made.sparse_frame(1)
    found = study.widest([made.study(train=many), made.study(train=probed)], "train")
    assert set(found.rows["path"]) == {"dense", "auto"}


def test_of_equal_parts_the_one_with_backward_passes_stands_for_the_layers() -> None:
    both = pd.concat([made.lstm_frame((256,), passes=passes) for passes in ("forward", "forward_backward")])
    for frame in (both, both[::-1]):
        assert set(made.study(lstm=frame).main("lstm", over="baseline").rows["passes"]) == {"forward_backward"}


def test_of_equal_parts_the_one_over_the_fused_layer_stands_for_the_layers() -> None:
    assert set(made.study(lstm=made.lstm_frame((256,))).main("lstm").rows["baseline"]) == {"torch_lstm"}


def products(noisy: bool = False, **settings: object) -> pd.DataFrame:
    return pd.DataFrame([made.ratio_row([2.0] * 3, rho, settings, noisy=noisy) for rho in (0.5, 0.8)])


def test_of_equally_large_parts_the_quiet_one_stands_for_the_products_then_float32() -> None:
    types = [products(dtype=dtype) for dtype in ("bfloat16", "float16", "float32")]
    found = made.study(gemm=pd.concat(types)).main("gemm")
    assert set(found.rows["dtype"]) == {"float32"} and found.label == "dtype float32"
    noisy = [products(dtype="float32", noisy=True), *types[:2]]
    assert set(made.study(gemm=pd.concat(noisy)).main("gemm").rows["dtype"]) == {"bfloat16"}
    assert made.study(gemm=products()).main("gemm").label == ""


def test_the_main_layer_is_the_one_with_the_most_cells_then_the_largest() -> None:
    frame = made.lstm_frame((256, 512))
    assert set(made.part(frame).main_layer().rows["hidden_size"]) == {512}
    fewer = made.part(frame.drop(frame.index[frame["hidden_size"] == 512][:3]))
    assert set(fewer.main_layer().rows["hidden_size"]) == {256}
    assert [name for name, _ in made.part(frame).layers()] == ["LSTM 256 → 256, 35 steps", "LSTM 512 → 512, 35 steps"]


def test_the_main_matrix_is_the_largest_with_the_most_columns() -> None:
    shapes = ({"m": 64}, {"m": 128, "n": 4}, {"m": 128, "n": 8})
    frame = pd.concat([made.storage_frame(**shape) for shape in shapes], ignore_index=True)
    main = made.part(frame).main_matrix().rows
    assert len(main) < len(frame) and set(main["m"]) == {128} and set(main["n"]) == {8}


def test_only_failed_layers_are_still_drawn_with_their_reason() -> None:
    from analysis.figures.products import layer_figure

    drawn = layer_figure(made.part(pd.DataFrame([made.row(LstmCell(), "unsupported", made.NO_COMPILER)])))
    assert any(made.NO_COMPILER in text.get_text().replace("\n", " ") for text in drawn.texts)


def test_every_committed_sweep_is_read_or_the_one_named(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = sweep(gemm=made.gemm_frame(backends=("native",)))
    monkeypatch.setattr(study, "REFERENCE", folder.parent)
    (folder.parent / "nothing").mkdir()
    monkeypatch.delenv("BENCH_RESULTS", raising=False)
    assert [found.name for found in study.read_reference()] == ["smoke"]
    assert load.REFERENCE != study.REFERENCE
    made.write(tmp_path / "other", "gemm", made.gemm_frame(backends=("native",)))
    monkeypatch.setenv("BENCH_RESULTS", str(tmp_path / "other"))
    assert [found.name for found in study.read_reference()] == ["other"]


def test_runs_of_two_processors_compare_by_accuracy_and_have_no_times() -> None:
    """As those of a campaign that went on on another machine."""
    alike = made.sparse_frame(3)
    mixed = alike.assign(device_name=["Other CPU" if seed == 2 else "Test CPU" for seed in alike["seed"]])
    one, two = (made.study(train=frame).main("train") for frame in (alike, mixed))
    same = ["variant", "block_size", "target_sparsity", "seeds", "test_ppl", "ppl_ratio"]
    pd.testing.assert_frame_equal(one.replicates[same], two.replicates[same])
    assert one.replicates["measured_training"].map(lambda found: found.n).max() == 3
    assert two.replicates["measured_training"].map(lambda found: found.n).max() == 0
    assert two.rows[["train_seconds", "inference_ms", "probes"]].isna().all(axis=None)
    assert two.realised["measured"].map(lambda found: found.n).max() == 0
    said = sections._machines(two)
    assert said == ["Trained on 2 processors (Other CPU; Test CPU): accuracies are compared, no time is read."]
    assert sections._machines(one) == []
    with pytest.raises(ValueError, match="mix device_name"):
        realised(mixed)


def test_runs_beside_fewer_and_more_others_have_times_of_pairs_alone() -> None:
    """As those of a campaign that had one processor for itself in one session, and both in another."""
    alike = made.sparse_frame(3)
    mixed = alike.assign(workers=[1 if seed == 2 else 2 for seed in alike["seed"]])
    one, two = (made.study(train=frame).main("train") for frame in (alike.assign(workers=2), mixed))
    assert one.replicates["measured_training"].map(lambda found: found.n).max() == 3 and sections._machines(one) == []
    assert two.replicates["measured_training"].map(lambda found: found.n).max() == 0
    assert two.rows[["train_seconds", "probes"]].isna().all(axis=None) and two.rows["inference_ms"].notna().any()
    (said,) = sections._machines(two)
    assert said.startswith("Trained 1 or 2 at a time: accuracies") and said.endswith("no time of training is read.")
    assert set(two.rows["probes"]) == {None}
    assert study.widest([study.read(study.REFERENCE / "wikitext2_words")], "train").runs.shape[0]
    words = study.read(study.REFERENCE / "wikitext2_words").main("train")
    assert words.rows["train_seconds"].isna().all() and words.runs["ppl_ratio"].notna().any()


def test_seconds_of_two_processors_are_never_a_ratio() -> None:
    frame = made.sparse_frame(2)
    apart = frame.assign(device_name=["Other CPU" if path != "dense" else "Test CPU" for path in frame["path"]])
    assert runs(apart).loc[lambda found: found["path"] != "dense", "measured_training"].isna().all()


def test_a_report_of_two_processors_is_made(sweep: Sweep) -> None:
    frame = made.sparse_frame(2)
    folder = sweep(train=frame.assign(device_name=[f"CPU {seed}" for seed in frame["seed"]]))
    assert "accuracies are compared, no time is read" in write_report(folder).read_text(encoding="utf-8")
    assert write_figures(folder, folder / "figures")
