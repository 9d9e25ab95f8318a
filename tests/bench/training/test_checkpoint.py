"""Checkpoints: an interrupted run goes on bit-equal, every part of one is needed, and only trusted ones are used."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import DIGITS, results, silent

from bench import train
from bench.cells import TrainCell
from bench.train import Run, train_cell
from bench.training.checkpoint import DIGEST_BYTES, Checkpoints, write
from bench.training.paths import NEVER, missing_kernel

pytestmark = pytest.mark.usefixtures("few_words")

NO_KERNEL = missing_kernel()
needs_kernel = pytest.mark.skipif(NO_KERNEL is not None, reason=f"no sparse path here: {NO_KERNEL}")
TINY = {
    "train_tokens": 2000, "eval_tokens": 500, "embedding_size": 16, "hidden_size": 32, "block_size": 8,
    "batch_size": 10, "bptt": 20, "epochs": 3, "prune_every": 2, "dropout": 0.3, "threads": 1,
    "schedule": "cubic", "target_sparsity": 0.8, "prune_end": 0.8,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "weight_decay": 1e-4, "lasso": "proximal"},
    "adam": {"learning_rate": 0.01, "weight_decay": 1e-2, "lr_schedule": "one_cycle"},
    "asgd": {"optimizer": "asgd", "learning_rate": 5.0, "weight_decay": 1e-4, "criterion": "random", "prune_end": 0.4},
    "gradients": {"learning_rate": 0.01, "criterion": "movement", "allocation": "global"},
    "curvature": {"learning_rate": 0.01, "criterion": "hessian", "curvature_probes": 2, "weight_decay": 1e-2},
    "threshold": {"learning_rate": 0.01, "target_sparsity": 0.0, "threshold": 0.125, "criterion": "rms"},
    "rewound": {
        "learning_rate": 0.01, "schedule": "iterative", "prune_rounds": 4, "rewind": "weights", "rewind_to": 0.1,
    },
    "stopping": {"learning_rate": 0.1, "schedule": "iterative", "prune_rounds": 8, "stop_rise": 0.01},
    "dual": {"learning_rate": 0.01, "lasso": "dual", "lasso_budget": 30.0, "lasso_rate": 1e-6},
    "regrown": {"learning_rate": 0.01, "schedule": "pre", "regrow": "set"},
    "rows": {
        "decoder": "adaptive", "cutoff": 50, "second_cutoff": 200, "embedding_gradient": "sparse",
        "learning_rate": 0.01, "lr_schedule": "one_cycle",
    },
    "awd_lstm": {
        "model": "awd_lstm", "optimizer": "nt_asgd", "learning_rate": 20.0, "nonmonotone": 1, "selection": "best",
        "prune_end": 0.3, "weight_drop": 0.3, "input_dropout": 0.2, "hidden_dropout": 0.2, "output_dropout": 0.2,
        "embedding_dropout": 0.1, "activation_penalty": 2.0, "temporal_penalty": 1.0, "rate_by_length": True,
        "lr_schedule": "four_phases",
    },
    "compiled": {
        "model": "awd_lstm", "learning_rate": 0.01, "weight_drop": 0.3, "hidden_dropout": 0.2,
        "activation_penalty": 2.0, "compile": "default",
    },
    "compiled adaptive": {
        "learning_rate": 0.01, "decoder": "adaptive", "cutoff": 50, "second_cutoff": 200, "compile": "default",
    },
    "mlp": {**DIGITS, "batch_size": 120, "learning_rate": 0.01, "weight_decay": 1e-2, "lr_schedule": "one_cycle"},
    "mlp batch_norm": {
        **DIGITS, "batch_size": 120, "learning_rate": 0.02, "batch_norm": True, "selection": "best", "prune_end": 0.3,
        "criterion": "random", "num_layers": 3, "scope": "weight_hh",
    },
    "scales": {
        "model": "mlp", "dataset": "digits", "batch_size": 120, "learning_rate": 0.01, "batch_norm": True,
        "scale_penalty": 0.02, "scale_threshold": 0.97, "scale_at": 0.3, "prune_biases": True,
    },
}  # fmt: skip
PATHS = dict.fromkeys(OPTIMIZERS, ("dense", "sparse", "auto"))
AT_HAND = (("adam", "auto"), ("awd_lstm", "sparse"), ("mlp", "dense"))  # of the tests; the others are `kills`
RUNS = [
    pytest.param(
        name,
        path,
        marks=[
            *(() if path == "dense" else (needs_kernel,)),
            pytest.mark.slow(2) if (name, path) in AT_HAND else pytest.mark.kills,
        ],
    )
    for name, paths in PATHS.items()
    for path in paths
]
EVERY_STEP = 0.0


class Stop(BaseException):
    """The run is interrupted."""


def cell(**settings: Any) -> TrainCell:
    return TrainCell(**{**TINY, **settings})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of 32 units change over at 0.3, others never; two probes an epoch and few samples."""
    monkeypatch.setattr("bench.training.paths.breakeven", lambda shape: 0.3 if shape.hidden == 32 else NEVER)
    monkeypatch.setattr(train, "PROBES_AN_EPOCH", 2)
    monkeypatch.setattr("bench.training.meter.INFERENCE_PAIRS", 2)
    monkeypatch.setattr("bench.training.meter.TRAINING_PAIRS", 1)


def interrupted(
    settings: TrainCell, steps: int, folder: Path, seconds: float = EVERY_STEP, last: float | None = None
) -> Path:
    """The checkpoint of a run that begins or goes on, and ends in the middle of a step, `steps` steps later.

    last: seconds between two checkpoints from the last whole step on.
    """
    finite, losses, checkpoints = train.finite, [], Checkpoints(folder, seconds)

    def stop(nats: float, epoch: int) -> float:
        losses.append(nats)
        if len(losses) > steps:
            raise Stop
        if len(losses) == steps and last is not None:
            object.__setattr__(checkpoints, "seconds", last)
        return finite(nats, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "finite", stop)
        with pytest.raises(Stop):
            train_cell(settings, silent, checkpoints=checkpoints)
    return checkpoints.path(settings.cell_id)


def content(path: Path) -> dict[str, Any]:
    return torch.load(io.BytesIO(path.read_bytes()[DIGEST_BYTES:]), weights_only=True)


@pytest.mark.parametrize(("optimizer", "path"), RUNS)
def test_an_interrupted_run_goes_on_bit_equal(optimizer: str, path: str, tmp_path: Path):
    settings = cell(**{**OPTIMIZERS[optimizer], "path": path})
    wanted = train_cell(settings, silent)
    pieces = (3, 6, 1, 1, 15)  # one ends within an epoch, one before its last step, one at its end, one after it
    for steps in pieces:  # the long ones are put aside at ends alone
        interrupted(settings, steps, tmp_path, EVERY_STEP if steps < 4 else 1e9, last=EVERY_STEP)
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path, EVERY_STEP))
    assert results(rows) == results(wanted)
    assert [row["resumed"] for row in rows] == [0, 3, 4, 5]
    for row, whole in zip(rows[1:], wanted[1:], strict=True):
        assert row["sparse_share"] == whole["sparse_share"]
        assert [probe["step"] for probe in row["probes"] or ()] == [probe["step"] for probe in whole["probes"] or ()]
    assert path == "dense" or rows[-1]["sparse_share"] > 0.0


def test_a_run_goes_on_from_the_last_checkpoint_and_repeats_what_came_after(tmp_path: Path):
    """Only epochs' ends are put aside here."""
    settings = cell(**OPTIMIZERS["adam"])
    interrupted(settings, 17, tmp_path, seconds=1e9)
    assert content(interrupted(settings, 5, tmp_path, seconds=1e9))["state"]["run"]["step"] == 10
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path, 1e9))
    assert results(rows) == results(train_cell(settings, silent)) and rows[-1]["resumed"] == 2


def leaves(thing: Any, path: str, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every number, string, tensor and generator that an object of ours or of torch holds, by the path to it."""
    if isinstance(thing, torch.Tensor):
        yield path, thing.detach().clone()
    elif isinstance(thing, torch.Generator):
        yield path, thing.get_state()
    elif thing is None or isinstance(thing, bool | int | float | str):
        yield path, thing
    elif id(thing) not in above:
        if isinstance(thing, dict):
            named = [(number if isinstance(name, torch.Tensor) else name) for number, name in enumerate(thing)]
            members = zip(named, thing.values(), strict=True)
        elif isinstance(thing, list | tuple):
            members = enumerate(thing)
        elif type(thing).__module__.startswith(("bench.", "kernels.", "torch.nn.", "torch.optim.")):
            members = vars(thing).items()
        else:
            return
        for name, value in members:
            yield from leaves(value, f"{path}.{name}", (*above, id(thing)))


CLOCKS = {
    "began",
    "aside",
    "told",
    "saved",
    "cost",
    "stopwatch",
    "seconds",
    "dense_ms",
    "lstm_ms",
    "train_seconds",
    "lstm_seconds",
}
ELSEWHERE = {"resumed", "earlier_seconds", "eval_seconds", "corpus", "_masks"}  # counted up, or known by other names
PASSING = {
    "gradient",
    "matrix",
    "_sparsity",
    "_opt_called",
}  # written before it is read, of the masks, only warned about


def everything(run: Run) -> dict[str, Any]:
    """All that a run holds, without clocks."""
    found = {name: value for name, value in leaves(run, "run") if not set(name.split(".")) & IGNORED}
    return {**found, "random": torch.get_rng_state()}


IGNORED = CLOCKS | ELSEWHERE | PASSING


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The paths at which two runs are not the same."""

    def same(name: str) -> bool:
        if name not in one or name not in other:
            return False
        first, second = one[name], other[name]
        return torch.equal(first, second) if isinstance(first, torch.Tensor) else bool(first == second)

    return [name for name in sorted(one.keys() | other.keys()) if not same(name)]


def taken_up(settings: TrainCell, folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that a run holds as it begins or goes on, and what it would put aside."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)  # as train_cell does, for a checkpoint is of a number of threads
        try:
            run = Run.of(settings.canonical(), silent, Checkpoints(folder) if folder else None)
            return everything(run), run.state()
        finally:
            torch.set_num_threads(threads)


@needs_kernel
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_is_taken_up_with_everything_it_held(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever is added to a run and forgotten in its checkpoint is found here."""
    settings, held = cell(**{**OPTIMIZERS[optimizer], "path": PATHS[optimizer][-1]}), []
    state_of = Run.state

    def looked_at(run: Run) -> dict[str, Any]:
        held.append(everything(run))
        return state_of(run)

    monkeypatch.setattr(Run, "state", looked_at)
    interrupted(settings, 1, tmp_path)
    interrupted(settings, 25, tmp_path, 1e9, last=EVERY_STEP)
    found, _ = taken_up(settings, tmp_path)
    assert len(held) >= 2 and len(found) > 100
    assert differing(found, held[-1]) == []
    assert "run.pruner._asked" in differing(found, held[0]) or settings.schedule == "pre"  # which asks once


WHOLE = ("model", "rates")  # parts that are one thing
LEFT_OUT = [
    *WHOLE, "optimizer.state", "optimizer.param_groups", "pruner.kept", "pruner.asked", "pruner.generator",
    "paths.thresholds", "random.torch", "keeper.windows", "keeper.resumed", "keeper.seconds",
    "meter.nats", "meter.targets", "meter.sparsities", "meter.sparse_layers", "meter.probes", "meter.train_seconds",
    "meter.lstm_seconds", "run.step", "run.states", "run.rows",
]  # fmt: skip
LATE = [
    "selection.epoch",
    "selection.val_ppl",
    "selection.weights",
    "trigger.history",
    "examiner.late",
]  # parts that matter at final sparsity
SUMMED = ["pruner.sums", "pruner.steps_seen"]  # parts of a cell whose criterion looks at gradients
OF_CLASSIFIERS = ["selection.val_accuracy"]


def fingerprint(rows: list[dict[str, Any]]) -> list[Any]:
    """What rows say of how they were made; seconds only as more than the thousand of `lengthened`."""
    probes = [[(probe["step"], probe["sparse_layers"]) for probe in row["probes"] or ()] for row in rows]
    counted = [[row[name] for row in rows] for name in ("sparse_share", "resumed")]
    timed = ("train_seconds", "lstm_seconds", "earlier_seconds")
    return [results(rows), probes, *counted, *[(row[name] or 0.0) > 1e3 for row in rows for name in timed]]


def lengthened(state: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a run that took its time."""
    state["meter"]["train_seconds"] = state["keeper"]["seconds"] = 1e4
    state["meter"]["lstm_seconds"] = [1e3 for _ in state["meter"]["lstm_seconds"]]
    return state


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainCell, dict[str, Any], list[Any]]:
    """A cell, its checkpoint amid the ramp and the second epoch, one layer changed over, and the end of it."""
    settings = cell(**{**OPTIMIZERS["adam"], "criterion": "random", "path": "auto"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.training.paths.breakeven", lambda shape: 0.3 if shape.hidden == 32 else NEVER)
        patch.setattr(train, "PROBES_AN_EPOCH", 2)
        folder = tmp_path_factory.mktemp("half")
        interrupted(settings, 1, folder)
        found = content(interrupted(settings, 12, folder))
        assert found["state"]["paths"]["thresholds"] == [0.3, NEVER]
        found["state"] = lengthened(found["state"])
        patch.setattr("bench.training.paths.breakeven", lambda _: NEVER)
        whole = gone_on(settings, found["made_for"], found["state"], folder)
    assert isinstance(whole, list)
    return settings, found, whole


def gone_on(settings: TrainCell, made_for: dict[str, str], state: dict[str, Any], folder: Path) -> list[Any] | str:
    """What comes of a checkpoint, or why nothing does."""
    write(Checkpoints(folder).path(settings.cell_id), made_for, state)
    try:
        return fingerprint(train_cell(settings, silent, checkpoints=Checkpoints(folder, 1e9)))
    except (AssertionError, ValueError, KeyError) as error:
        return str(error)


@needs_kernel
@pytest.mark.kills
@pytest.mark.parametrize("part", LEFT_OUT)
def test_no_part_can_be_left_out(part: str, half: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part that is left out is what it is at the beginning of a run; the break-even, what is measured now."""
    settings, found, whole = half
    monkeypatch.setattr("bench.training.paths.breakeven", lambda _: NEVER)
    (_, fresh), state = taken_up(settings, None), dict(found["state"])
    name, _, member = part.partition(".")
    state[name] = {**state[name], member: fresh[name][member]} if member else fresh[name]
    without = gone_on(settings, found["made_for"], state, tmp_path)
    if part == "pruner.asked":  # asking once more for the same sparsity costs time and a random number, no digit
        write(Checkpoints(tmp_path).path(settings.cell_id), found["made_for"], state)
        assert taken_up(settings, tmp_path)[0]["run.pruner._asked"] != found["state"]["pruner"]["asked"]
    else:
        assert without != whole


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainCell, dict[str, Any], list[Any]]:
    """A cell of NT-ASGD that reports its best epoch, its checkpoint in the last of five epochs, and the end of it."""
    settings, folder = cell(**{**OPTIMIZERS["awd_lstm"], "epochs": 5}), tmp_path_factory.mktemp("late")
    found = content(interrupted(settings, 46, folder))
    found["state"]["selection"]["val_ppl"] = 0.0  # no later epoch is better
    found["state"]["trigger"]["history"] = [0.0, 0.0]  # any is worse
    for group in found["state"]["optimizer"]["param_groups"]:
        group["averaging"] = False
    whole = averages_after(settings, found["made_for"], found["state"], folder)
    assert whole[0] and whole[1]["reported_epoch"] == found["state"]["selection"]["epoch"] < 5
    return settings, found, whole


def averages_after(settings: TrainCell, made_for: dict[str, str], state: dict[str, Any], folder: Path) -> list[Any]:
    """Whether NT-ASGD averages when a run has gone on to its end, and the last row."""
    write(Checkpoints(folder).path(settings.cell_id), made_for, state)
    runs: list[Run] = []
    of = Run.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "of", lambda *given: runs.append(of(*given)) or runs[0])
        [*_, last] = results(train_cell(settings, silent, checkpoints=Checkpoints(folder, 1e9)))
    return [getattr(runs[0].optimizer, "averaging", None), last]


@pytest.mark.slow(2)
@pytest.mark.parametrize("part", LATE)
def test_no_part_can_be_left_out_at_final_sparsity(part: str, late: Any, tmp_path: Path):
    settings, found, whole = late
    (_, fresh), state = taken_up(settings, None), dict(found["state"])
    name, _, member = part.partition(".")
    state[name] = {**state[name], member: fresh[name][member]}
    assert averages_after(settings, found["made_for"], state, tmp_path) != whole


@needs_kernel
@pytest.mark.slow(1)  # where its fixture is at hand
def test_every_part_is_among_those_that_cannot_be_left_out(half: Any):
    _, found, _ = half
    state = found["state"]
    members = {f"{name}.{member}" for name, part in state.items() if name not in WHOLE for member in part}
    assert members | set(WHOLE) == set(LEFT_OUT + LATE + SUMMED + OF_CLASSIFIERS)


@pytest.mark.slow(2)
@pytest.mark.parametrize("part", SUMMED)
def test_no_sum_of_gradients_can_be_left_out(part: str, tmp_path: Path):
    """Of steps, an order of scores is the same however many there were; they are there for scores that are compared."""
    settings = cell(**{**OPTIMIZERS["gradients"], "criterion": "taylor", "prune_every": 8})
    found = content(interrupted(settings, 13, tmp_path))
    state, made_for, member = dict(found["state"]), found["made_for"], part.removeprefix("pruner.")
    assert state["pruner"]["steps_seen"] == 5
    whole = gone_on(settings, made_for, state, tmp_path)
    _, fresh = taken_up(settings, None)
    state["pruner"] = {**state["pruner"], member: fresh["pruner"][member]}
    if member == "sums":
        assert gone_on(settings, made_for, state, tmp_path) != whole
    else:
        write(Checkpoints(tmp_path).path(settings.cell_id), made_for, state)
        assert taken_up(settings, tmp_path)[0]["run.pruner._steps_seen"] == 0


@pytest.mark.slow(2)
@pytest.mark.parametrize(("part", "optimizer"), [("early", "rewound"), ("lowest", "stopping"), ("stopped", "stopping")])
def test_nothing_of_a_pruning_in_rounds_can_be_left_out(part: str, optimizer: str, tmp_path: Path):
    """The early weights go into the cuts to come; the lowest perplexity so far, and that it rose, end them."""
    settings = cell(**OPTIMIZERS[optimizer], epochs=5)
    found = content(interrupted(settings, 23, tmp_path))  # two epochs are over
    state, made_for = dict(found["state"]), found["made_for"]
    (_, fresh), pruner = taken_up(settings, None), dict(state["pruner"])
    if part == "lowest":
        pruner |= {"lowest": 1.0, "stopped": False}
    elif part == "stopped":
        pruner |= {"stopped": True}
    whole = gone_on(settings, made_for, state | {"pruner": pruner}, tmp_path)
    without = {**pruner, part: fresh["pruner"][part]}
    assert gone_on(settings, made_for, state | {"pruner": without}, tmp_path) != whole


@pytest.mark.parametrize("part", [*OF_CLASSIFIERS, "selection.weights", "model.norms.0.running_mean"])
def test_nothing_that_a_classifier_reports_can_be_left_out(part: str, tmp_path: Path):
    """No later epoch is better: what is reported was evaluated before the checkpoint, running statistics and all."""
    settings = cell(**OPTIMIZERS["mlp batch_norm"])
    found = content(interrupted(settings, 26, tmp_path))
    state, made_for = dict(found["state"]), found["made_for"]
    state["selection"] = {**state["selection"], "val_ppl": 0.0}
    assert state["selection"]["epoch"] == 2 and "norms.0.running_mean" in state["selection"]["weights"]
    whole = gone_on(settings, made_for, state, tmp_path)
    (_, fresh), (name, _, member) = taken_up(settings, None), part.partition(".")
    state[name] = {**state[name], member: fresh[name][member]}
    assert isinstance(whole, list) and gone_on(settings, made_for, state, tmp_path) != whole


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainCell, bytes, list[dict[str, Any]]]:
    """A dense cell of one epoch, a checkpoint of it, and what it ends with."""
    settings = cell(epochs=1, schedule="none")
    checkpoint = interrupted(settings, 4, tmp_path_factory.mktemp("short"))
    return settings, checkpoint.read_bytes(), results(train_cell(settings, silent))


def begins_anew(short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """That the checkpoint in `tmp_path` is not used, and the line that says why."""
    settings, _, wanted = short
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path))
    assert results(rows) == wanted and rows[-1]["resumed"] == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("checkpoint not used, training starts anew: ")
    return said


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: data[:0],
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "bit of the checksum": lambda data: flipped(data, 3),
    "first bit": lambda data: flipped(data, DIGEST_BYTES),
    "bit in the middle": lambda data: flipped(data, len(data) // 2),
    "last bit": lambda data: flipped(data, len(data) - 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_used(damage: str, short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings, data, _ = short
    Checkpoints(tmp_path).path(settings.cell_id).write_bytes(DAMAGES[damage](data))
    assert "is damaged: its sha256 is not the one at its beginning" in begins_anew(short, tmp_path, capsys)


def test_nothing_but_plain_data_is_loaded(short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Right checksum, foreign content: an object that torch would have to make by running code."""
    path = Checkpoints(tmp_path).path(short[0].cell_id)
    write(path, {}, {"path": Path("anything")})
    assert "is no checkpoint: UnpicklingError" in begins_anew(short, tmp_path, capsys)
    for foreign in (b"", b"text"):
        path.write_bytes(hashlib.sha256(foreign).digest() + foreign)
        assert "is no checkpoint" in begins_anew(short, tmp_path, capsys)


@pytest.mark.parametrize("name", ["format", "cell", "sources", "torch", "processor", "threads", "text", "kernel"])
def test_a_checkpoint_of_anything_else_is_not_used(
    name: str, short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings, data, _ = short
    path = Checkpoints(tmp_path).path(settings.cell_id)
    path.write_bytes(data)
    found = content(path)
    assert name in found["made_for"]
    write(path, {**found["made_for"], name: "another"}, found["state"])
    assert f"was made with another {name}: another, here" in begins_anew(short, tmp_path, capsys)


def test_a_checkpoint_that_cannot_be_written_costs_nothing(
    short: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings, data, wanted = short
    (tmp_path / "file").touch()
    rows = train_cell(settings, silent, checkpoints=Checkpoints(tmp_path / "file", 1e9))
    assert results(rows) == wanted and "no checkpoint: " in capsys.readouterr().err
    folder = tmp_path / "folder"
    rows = train_cell(settings, silent, checkpoints=Checkpoints(folder, EVERY_STEP, largest=len(data) // 2))
    said = capsys.readouterr().err
    assert results(rows) == wanted and said.count("\n") == 1 and "MiB; kept are up to" in said
    assert not folder.exists()


def test_a_direct_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    train_cell(cell(epochs=1), silent)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_discarded_with_what_was_half_written(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path / "folder")
    checkpoints.folder.mkdir()
    for name in ("a.pt", ".bench-01234567.tmp", "b.pt"):
        (checkpoints.folder / name).touch()
    checkpoints.discard(["a", "c"])
    checkpoints.tidy()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["b.pt"]
    assert checkpoints.path("b").exists()
    checkpoints.discard(["b"])
    checkpoints.tidy()
    assert not checkpoints.folder.exists()
    checkpoints.tidy()
