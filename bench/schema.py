"""The columns of the result tables: one entry a column, with type, unit, role and meaning.

Roles: `result` is deterministic (equal after a resume), `measured` differs from run to run, `provenance` says where and
with what it was made. Settings are columns too; their types and descriptions come from `bench.cells`. Rows hold
settings and measurements, never predictions. From these columns both what people read of them is made
(results/README.md) and what the analysis knows of them (analysis/loading/columns.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pyarrow as pa

from bench.cells import KINDS

SCHEMA_VERSION = 1

Role = Literal["identity", "setting", "result", "measured", "provenance"]

STATUSES = {
    "ok": "measured and checked",
    "unsupported": "this backend cannot do it here; see reason",
    "wrong": "the output missed the float64 reference; no time is stored",
    "diverged": "the loss became NaN or infinite; the epochs before it are kept",
    "failed": "an exception; see reason",
    "out_of_memory": "memory ran out",
    "timeout": "stopped at the time limit of a cell",
    "crashed": "the worker process died",
}
LARGEST_PPL = 1e100  # what is beyond is no perplexity: the run diverged
PATTERNS = ("random", "empty rows", "all empty", "one block", "full row", "full")
SETTING_TYPES: dict[object, pa.DataType] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class Column:
    """One column: `unit` is empty where there is none; a null means 'does not apply or was not reached'."""

    name: str
    type: pa.DataType
    role: Role
    unit: str
    doc: str


NORM_MAP = pa.struct(
    [
        ("weight", pa.string()),
        ("grid_rows", pa.int32()),
        ("grid_cols", pa.int32()),
        ("norms", pa.list_(pa.float32())),
    ]
)

PROBE = pa.struct(
    [
        ("step", pa.int64()),
        ("sparsity", pa.float64()),
        ("sparse_layers", pa.int64()),
        ("dense_ms", pa.list_(pa.float64())),
        ("lstm_ms", pa.list_(pa.float64())),
    ]
)


# fmt: off
def _paired(what: str, error: str, backend: str = "the backend") -> tuple[Column, ...]:
    """Columns of paired timings; what: the thing that one launch computes; backend: what is beside the baseline."""
    return (
        Column("error_ratio", pa.float64(), "measured", "",
               f"largest |error| / {error} bound against float64; at most 1"),
        Column("prepare_ms", pa.float64(), "measured", "ms", "compile, convert and allocate, once"),
        Column("time_ms", pa.float64(), "measured", "ms", f"median time of one {what} by {backend}"),
        Column("baseline_ms", pa.float64(), "measured", "ms", f"median time of one {what} by the baseline"),
        Column("samples_ms", pa.list_(pa.float64()), "measured", "ms", f"every sample of {backend}, time per {what}"),
        Column("baseline_samples_ms", pa.list_(pa.float64()), "measured", "ms",
               "every sample of the baseline, paired by position"),
        Column("launches_per_sample", pa.int64(), "measured", "", f"{what}s timed together in one sample"),
        Column("noisy", pa.bool_(), "measured", "",
               "middle half of the pairwise ratios spread over more than 10 % of their median, or a median time was "
               "twice its minimum"),
        Column("attempts", pa.int64(), "measured", "",
               "times the pairs were sampled: a noisy attempt is thrown away, at most 3 are made"),
        Column("timer", pa.string(), "measured", "",
               "clock that took the samples; on a GPU both sides are replayed from a CUDA graph where either takes "
               "less than 20 us, or the processor half as long to launch it"),
        Column("host_ms", pa.float64(), "measured", "ms",
               f"processor time to launch one {what} of {backend} on a GPU; null on a CPU"),
        Column("eager_ms", pa.float64(), "measured", "ms",
               f"median time of one {what} by {backend} launched without a graph, several in a row; null where the "
               "samples are such, and in older tables"),
        Column("baseline_eager_ms", pa.float64(), "measured", "ms", f"the same of one {what} by the baseline"),
        Column("empty_ms", pa.float64(), "measured", "ms",
               "median time of an empty launch on a GPU, taken as the samples are: what of a short one is no work; "
               "null on a CPU and in older tables"),
    )


def _timed(what: str, error: str) -> tuple[Column, ...]:
    """Columns of a table of paired timings; what: the thing that one launch computes."""
    return (
        Column("kernel", pa.string(), "measured", "", "what ran for the backend"),
        Column("baseline_kernel", pa.string(), "measured", "", "what ran for the baseline"),
        Column("sparsity", pa.float64(), "result", "fraction", "achieved share of empty blocks"),
        Column("nnzb", pa.int64(), "result", "blocks", "kept blocks"),
        Column("num_empty", pa.int64(), "result", "blocks", "empty blocks, K"),
        Column("padded_share", pa.float64(), "result", "fraction",
               "share of the elements of the kept blocks that is padding (pad); 0 where nothing is padded, or no block "
               "is kept; null in older tables"),
        Column("weight_bytes", pa.int64(), "result", "bytes",
               "values of the sparse weights as the backend stores them"),
        Column("index_bytes", pa.int64(), "result", "bytes",
               "indices of the sparse weights as the backend stores them"),
        *_paired(what, error),
        Column("roof_ms", pa.float64(), "measured", "ms",
               "the least time that the GPU's rates allow: the longer one of the arithmetic of the kept elements at "
               "peak_tflops and of operands and results, each moved once, at copy_gb_per_second; this and these two: "
               "null on a CPU and in older tables"),
        Column("peak_tflops", pa.float64(), "measured", "TFLOP/s",
               "rate of cuBLAS on a product of 8192 x 8192 matrices of this type, in the same process"),
        Column("copy_gb_per_second", pa.float64(), "measured", "GB/s",
               "rate of a copy of 1 GiB, read and written bytes together, in the same process"),
    )


IDENTITY = (
    Column("cell_id", pa.string(), "identity", "", "sha256 of the non-default settings, 16 hex digits"),
    Column("kind", pa.string(), "identity", "", "kind of cell: the table it is in"),
    Column("status", pa.string(), "result", "", "how the cell ended: " + ", ".join(STATUSES)),
    Column("reason", pa.string(), "result", "",
           "why it is not ok, one line; of a training run that is ok: why path = auto has no sparse path here"),
)

GEMM = _timed("product", "componentwise")
LSTM = _timed("layer", "normwise")

TRAIN = (
    Column("epoch", pa.int64(), "result", "",
           "1 for the first; 0 is before training (block norms only); null where none was finished"),
    Column("step", pa.int64(), "result", "", "optimizer steps done"),
    Column("train_ppl", pa.float64(), "result", "",
           "perplexity while training this epoch, exp(mean nats per token); of a classifier exp(loss), the mean "
           "cross-entropy of an example in nats"),
    Column("val_ppl", pa.float64(), "result", "", "validation perplexity after this epoch"),
    Column("test_ppl", pa.float64(), "result", "", "test perplexity after this epoch"),
    Column("val_change", pa.float64(), "result", "nats",
           "mean nats of a validation target at the end less those when the last tenth of the run began; last epoch "
           "of a run of 10 steps or more"),
    Column("val_change_error", pa.float64(), "result", "nats",
           "standard error of val_change, over the windows of the validation text"),
    Column("val_accuracy", pa.float64(), "result", "fraction",
           "validation examples that a classifier gets right after this epoch; this and the like of the test and of "
           "the epoch reported: null of language models and in older tables"),
    Column("test_accuracy", pa.float64(), "result", "fraction", "test examples that it gets right after this epoch"),
    Column("averaging", pa.bool_(), "result", "", "this epoch was evaluated with the averages of nt_asgd"),
    Column("scheduled_sparsity", pa.float64(), "result", "fraction",
           "what the schedule asks for at the end of this epoch; null where a threshold decides"),
    Column("sparsity", pa.float64(), "result", "fraction",
           "achieved share of empty blocks of the prunable weights after this epoch"),
    Column("mean_sparsity", pa.float64(), "result", "fraction",
           "achieved sparsity averaged over the steps of this epoch"),
    Column("zero_block_share", pa.float64(), "result", "fraction",
           "blocks that are exactly zero, pruned or driven there by the proximal step"),
    Column("lasso_penalty", pa.float64(), "result", "nats", "block-lasso penalty after this epoch, lambda included"),
    Column("bias_sparsity", pa.float64(), "result", "fraction",
           "share of the biases that are masked (prune_biases); null where none is"),
    Column("kept_neurons", pa.list_(pa.int64()), "result", "",
           "neurons of each layer that did not go by their scale (scale_threshold); null where none does"),
    Column("lasso_multiplier", pa.float64(), "result", "",
           "lambda after this epoch, of lasso = dual; null of other forms and in older tables"),
    Column("train_tokens_seen", pa.int64(), "result", "tokens", "targets trained on in this epoch, tokens or examples"),
    Column("eval_tokens_seen", pa.int64(), "result", "tokens", "validation targets evaluated"),
    Column("vocabulary", pa.int64(), "result", "types", "size of the vocabulary, or classes"),
    Column("token", pa.string(), "result", "",
           "what a target is: word or character of a text, example of a classifier; null in older tables: word"),
    Column("features", pa.int64(), "result", "", "numbers of an example, of a classifier; null of a language model"),
    Column("corpus_sha256", pa.string(), "result", "", "sha256 of the token streams, or examples, 16 hex digits"),
    Column("parameters", pa.int64(), "result", "", "parameters, the tied embedding counted once"),
    Column("prunable_parameters", pa.int64(), "result", "", "parameters in prunable weights"),
    Column("decoder_multiply_adds", pa.float64(), "result", "",
           "multiply-adds of the decoder for a token (of an adaptive softmax averaged over the training text), or of "
           "the output layer for an example"),
    Column("block_norms", pa.list_(NORM_MAP), "result", "",
           "L2 norm of every block of every prunable weight, at the first (0), middle and last epoch; none at "
           "block_size 1"),
    Column("train_seconds", pa.float64(), "measured", "s",
           "training part of this epoch; a GPU is waited for at its ends, and cells that train beside it (workers) "
           "slow it down"),
    Column("eval_seconds", pa.float64(), "measured", "s", "evaluation part of this epoch"),
    Column("lstm_kernel", pa.string(), "result", "",
           "what computed the sparse path so far; empty if nothing ran on it"),
    Column("sparse_share", pa.float64(), "measured", "fraction",
           "(layer, step) pairs of this epoch that ran on the sparse path; measured, because path = auto goes by "
           "timings"),
    Column("lstm_seconds", pa.float64(), "measured", "s",
           "time inside the LSTM layers, or an mlp's hidden ones, forward and backward, while training this epoch; on "
           "a GPU its own, between CUDA events"),
    Column("probes", pa.list_(PROBE), "measured", "ms",
           "LSTM layers forward + backward on the batch of a step, interleaved pairs: all on the dense path "
           "(dense_ms) against the path in use (lstm_ms); on a GPU between CUDA events; outside train_seconds; path "
           "other than dense only"),
    Column("loss_eager_ms", pa.list_(pa.float64()), "measured", "ms",
           "forward + backward of one step's loss, as it is written, every sample; outside train_seconds; this and "
           "what follows: setting compile only, timed once a run, null in older tables"),
    Column("loss_compiled_ms", pa.list_(pa.float64()), "measured", "ms",
           "the same by torch.compile, paired by position"),
    Column("reported_epoch", pa.int64(), "result", "",
           "the epoch that setting selection reports, at final sparsity; this and what follows of it: last epoch only"),
    Column("reported_val_ppl", pa.float64(), "result", "", "validation perplexity of that epoch"),
    Column("reported_test_ppl", pa.float64(), "result", "",
           "test perplexity of that epoch's weights, the text cut into test_batch_size streams"),
    Column("reported_val_accuracy", pa.float64(), "result", "fraction", "validation examples that it gets right"),
    Column("reported_test_accuracy", pa.float64(), "result", "fraction", "test examples that it gets right"),
    Column("resumed", pa.int64(), "measured", "",
           "times the run had been taken up from a checkpoint by the end of this epoch; its seconds are sums over "
           "the pieces, without what a kill lost"),
    Column("earlier_seconds", pa.float64(), "measured", "s",
           "wall time of the pieces before the last taking up, each up to its last checkpoint; in cell_seconds too"),
    Column("padded_share", pa.float64(), "result", "fraction",
           "share of the elements of the kept blocks that is padding (pad); 0 where nothing is padded, or no block is "
           "kept; where the columns below are, and null in older tables"),
    Column("dense_bytes", pa.int64(), "result", "bytes",
           "prunable weights as dense matrices; this and what follows: last epoch of a pruned run, path other than "
           "dense, or of one that lets neurons go"),
    Column("final_bytes", pa.int64(), "result", "bytes", "prunable weights as exported: kept blocks and their indices"),
    Column("live_units", pa.list_(pa.int64()), "result", "",
           "units of each layer that are read and do not stay as they are; the others can be removed without a change; "
           "null in older tables"),
    Column("narrowed_units", pa.list_(pa.int64()), "result", "",
           "units of each layer once the dead ones are removed, in whole blocks: of the narrowed model; this and what "
           "follows of it: null in older tables"),
    Column("narrowed_sparsity", pa.float64(), "result", "fraction",
           "share of empty blocks of the pruned weights of the narrowed model; null where it has none left"),
    Column("narrowed_bytes", pa.int64(), "result", "bytes", "its pruned weights as exported"),
    Column("narrowed_ppl", pa.float64(), "result", "",
           "its test perplexity: as final_ppl, up to rounding"),
    Column("final_ppl", pa.float64(), "result", "",
           "test perplexity of the finalised model, exported and loaded again"),
    Column("final_accuracy", pa.float64(), "result", "fraction", "test examples that it gets right, of a classifier"),
    Column("inference_kernel", pa.string(), "result", "", "what multiplied the exported weights"),
    Column("inference_dense_ms", pa.list_(pa.float64()), "measured", "ms",
           "dense model on one window of evaluation, every sample"),
    Column("inference_ms", pa.list_(pa.float64()), "measured", "ms",
           "exported model on the same window, paired by position"),
    Column("inference_lstm_dense_ms", pa.list_(pa.float64()), "measured", "ms",
           "LSTM layers alone of the dense model, every sample"),
    Column("inference_lstm_ms", pa.list_(pa.float64()), "measured", "ms",
           "LSTM layers alone of the exported model, paired by position"),
    Column("inference_narrowed_dense_ms", pa.list_(pa.float64()), "measured", "ms",
           "dense model on the same window, every sample, paired with the narrowed model's"),
    Column("inference_narrowed_ms", pa.list_(pa.float64()), "measured", "ms",
           "narrowed model on the same window, paired by position"),
    Column("equal_units", pa.int64(), "result", "",
           "units of the hidden layers of a dense network whose layers store as many weights as the exported model's, "
           "to the nearest; this and what follows of it: null where none has within 5 % as many, and in older tables"),
    Column("inference_equal_dense_ms", pa.list_(pa.float64()), "measured", "ms",
           "dense model on the same window, every sample, paired with that smaller dense network's"),
    Column("inference_equal_ms", pa.list_(pa.float64()), "measured", "ms",
           "that smaller dense network, untrained, on the same window, paired by position"),
)

CHECK = (
    Column("pattern", pa.string(), "result", "", "which blocks were kept: " + ", ".join(PATTERNS)),
    Column("n", pa.int64(), "result", "", "columns of X, or sequences side by side"),
    Column("kernel", pa.string(), "measured", "", "what ran"),
    Column("error_ratio", pa.float64(), "measured", "",
           "largest |error| / bound against float64; at most 1 where it is right"),
)

TUNE = (
    Column("variant", pa.string(), "result", "", "parameters of the kernel, as JSON"),
    Column("kernel", pa.string(), "measured", "", "what ran"),
    Column("error_ratio", pa.float64(), "measured", "", "largest |error| / bound against float64; at most 1"),
    Column("time_ms", pa.float64(), "measured", "ms", "median time of one product by this variant"),
    Column("samples_ms", pa.list_(pa.float64()), "measured", "ms", "every sample; one of each variant in turns"),
    Column("chosen", pa.bool_(), "measured", "", "this variant had the shortest median"),
    Column("timer", pa.string(), "measured", "", "clock that took the samples"),
)

STORAGE = (
    Column("kernel", pa.string(), "measured", "", "what multiplied the stored matrix"),
    Column("baseline_kernel", pa.string(), "measured", "",
           "what ran for the baseline: the dense product of the weight with no block emptied, or of the activations"),
    Column("sparsity", pa.float64(), "result", "fraction",
           "achieved share of blocks of block_size that are empty; of single elements where there are no blocks"),
    Column("zero_share", pa.float64(), "result", "fraction", "achieved share of elements that are exactly zero"),
    Column("nnz", pa.int64(), "result", "elements", "elements that are not zero: what coo and csr store"),
    Column("nnzb", pa.int64(), "result", "blocks", "blocks that are not empty: what bsr stores"),
    Column("index_width", pa.int64(), "result", "bytes", "one index as the form holds it; 0 where it has none"),
    Column("value_bytes", pa.int64(), "result", "bytes", "values in memory, of the tensors that are multiplied"),
    Column("index_bytes", pa.int64(), "result", "bytes", "indices in memory, likewise"),
    Column("packed_bytes", pa.int64(), "measured", "bytes",
           "what the kernel keeps beside them, in another order, for products like the last one; 0 where it reads what "
           "is stored"),
    Column("file_bytes", pa.int64(), "result", "bytes",
           "an uncompressed .npz file of the same tensors and the two sides; it was read again, compared bit by bit, "
           "and is what was multiplied"),
    *_paired("product", "componentwise", "the form"),
)

PROVENANCE = (
    Column("schema_version", pa.int64(), "provenance", "", "version of these columns"),
    Column("commit", pa.string(), "provenance", "",
           "git commit of the suite; outside a checkout what BENCH_COMMIT says, or empty"),
    Column("dirty", pa.bool_(), "provenance", "", "the checkout had uncommitted changes"),
    Column("source_hash", pa.string(), "provenance", "",
           "sha256 of the sources that compute a cell, of kernels/ and bench/, and of plugins, 16 hex digits"),
    Column("plugins", pa.string(), "provenance", "",
           "plugins that the cell's settings name, each with the first 16 digits of its file's sha256; null in older "
           "rows"),
    Column("device_name", pa.string(), "provenance", "", "processor or GPU model"),
    Column("cores", pa.int64(), "provenance", "", "logical cores"),
    Column("machine", pa.string(), "provenance", "",
           "8 hex digits of what times depend on: processor, processors in use, GPUs and driver, version of torch; "
           "null in older rows"),
    Column("threads_used", pa.int64(), "provenance", "",
           "threads in force: read back from torch, and no more than OpenMP starts"),
    Column("os", pa.string(), "provenance", "", "operating system and machine"),
    Column("driver", pa.string(), "provenance", "", "GPU driver version, empty on a CPU"),
    Column("gpu_libraries", pa.string(), "provenance", "",
           "versions of CUDA, cuBLAS, cuDNN and NVRTC, as far as they are known; empty on a CPU, null in older rows"),
    Column("sm_clock_mhz", pa.float64(), "provenance", "MHz",
           "clock of the GPU's multiprocessors right after the samples; as it was, never set; null on a CPU or where "
           "the driver does not say"),
    Column("memory_clock_mhz", pa.float64(), "provenance", "MHz", "clock of the GPU's memory, likewise"),
    Column("temperature_celsius", pa.float64(), "provenance", "degrees Celsius", "temperature of the GPU, likewise"),
    Column("power_watts", pa.float64(), "provenance", "W", "power drawn by the GPU, likewise"),
    Column("clock_limits", pa.string(), "provenance", "",
           "why the GPU's clocks were no higher, in the driver's words, likewise; empty where nothing held them; null "
           "in older rows"),
    Column("python", pa.string(), "provenance", "", "Python version"),
    Column("torch", pa.string(), "provenance", "", "torch version"),
    Column("blas", pa.string(), "provenance", "", "BLAS torch was built with"),
    Column("workers", pa.int64(), "provenance", "", "cells that were running side by side"),
    Column("started_at", pa.string(), "provenance", "", "UTC, ISO 8601"),
    Column("cell_seconds", pa.float64(), "provenance", "s",
           "wall time of the whole cell, summed over its pieces where it went on from a checkpoint"),
    Column("peak_memory_mib", pa.float64(), "measured", "MiB",
           "the most memory that the cell's process held while it ran (resident set; torch and corpus among it); null "
           "outside Linux and in older rows"),
    Column("peak_gpu_memory_mib", pa.float64(), "measured", "MiB",
           "the most that torch held of the GPU's memory meanwhile; null on a CPU and in older rows"),
)
# fmt: on

COLUMNS: dict[str, tuple[Column, ...]] = {
    "gemm": GEMM,
    "lstm": LSTM,
    "train": TRAIN,
    "check": CHECK,
    "tune": TUNE,
    "storage": STORAGE,
}


def columns(kind: str) -> tuple[Column, ...]:
    """Every column of one table but the settings, in order."""
    return (*IDENTITY, *COLUMNS[kind], *PROVENANCE)


@cache
def arrow_schema(kind: str) -> pa.Schema:
    """One table: identity, settings, results and measurements, provenance; documented in the metadata."""
    first, last = columns(kind)[:2], columns(kind)[2:]
    settings = [
        Column(name, SETTING_TYPES.get(field.annotation, pa.string()), "setting", "", field.description or "")
        for name, field in KINDS[kind].model_fields.items()
    ]
    return documented((*first, *settings, *last))


def documented(columns: Iterable[Column]) -> pa.Schema:
    """A table of these columns, what they are in its metadata."""
    return pa.schema(
        pa.field(each.name, each.type, metadata={"role": each.role, "unit": each.unit, "doc": each.doc})
        for each in columns
    )


INTRODUCTION = """# Results

One folder a sweep. `gemm.parquet`, `lstm.parquet`, `train.parquet`, `check.parquet`, `tune.parquet` and \
`storage.parquet` hold the finished cells in the order of the sweep file, each with its
checksum in a `.sha256` file beside it (`sha256sum -c` reads it). `cells/` holds one file per finished cell and is \
what a
resumed run goes by; `reference/` is committed, the rest is not.

Roles: an *identity* or *setting* column says what was measured; a *result* is deterministic, equal after a resume;
*measured* differs from run to run; *provenance* says where and with what it was made. An empty value does not apply \
or was
not reached. There are no predictions here: those are in `analysis/`.

GPU rows: not run. `python -m bench campaign gemm_gpu lstm_gpu --out DIR --budget SECONDS` measures them; its folders \
go under
`reference/` as they are.

This page is made by `python -m bench columns`.
"""

NOTES = """
## Sizes that blocks do not divide: `pad`

They are refused, the nearest sizes named, unless a cell of kind `gemm`, `lstm` or `train` says `pad = true`: \
its weights are filled up with zeros to
whole blocks, of an LSTM layer each gate by itself. `sparsity` is the share of the blocks of that padded weight that \
are empty; each
of them holds elements of the weight itself, so none is empty by padding alone. `padded_share` is the share of padding \
in what is
stored and multiplied. The baseline has the sizes as they are, and predictions go by `sparsity`, so that padding \
shows as lost
efficiency. In training a block that reaches beyond the weight is a block like any other: fewer elements give it a \
smaller norm, so
magnitudes empty it early. Which blocks there are is the same on both paths; the layers' sizes, and what is exported, \
stay as they are.

## Training on the kept blocks: `path`

A cell's `path` says what multiplies its pruned weights. `dense` (the default) masks them and
multiplies everything. `sparse` runs our kernels that skip empty blocks, from the first step on; where there are none, \
as on a CPU
without a C++ compiler, the cell is `unsupported`. `auto` lets each layer change over at its break-even sparsity, \
which is measured
once per machine, shape and block size, kept in your cache folder and listed by `python -m bench doctor`; without \
kernels it stays
dense. Either way `reason` says why. The paths add up in different orders, so the last digits of a result depend on \
the path, and
under `auto` on where the change-over lies; everything else is the same run: every random number, `weight_drop`'s mask \
of the whole
weight among them, is drawn alike.

## Training on a GPU: `device`, `precision`

`device = "cuda"` in a training cell; `precision` says how float32 is multiplied there: `ieee`, `tf32`, or
`bfloat16` (in the products of the forward pass and their gradients; parameters, optimizer and loss stay float32). The \
first
weights are drawn on the CPU, so a seed begins alike on both devices; dropout is drawn where it is used.
A loss that is no number is noticed up to 50 steps late, in the right epoch.

## AWD-LSTM: `model`

`model = "awd_lstm"` has every dropout and penalty of the paper as a setting; two recipes come as
sweeps. `wikitext2_paper` trains the slides' four rows by SGD, then NT-ASGD: the averages (`optimizer = "nt_asgd"`) \
start when
the validation perplexity stalls, and only epochs after the pruning ramp are asked, since pruning itself raises it.
`wikitext2_best` is the 90-epoch recipe (`lr_schedule = "four_phases"`, Adam) with a cubic ramp; its \
`activation_penalty` is 1.8
for the recipe's 3, which acts on the output before its dropout of 0.4. `wikitext2_wide` spends the
dense model's weights on wider layers. Beside them stand dense models of the same size and of as many LSTM weights as \
are kept.
`selection = "best"` reports the epoch of the lowest validation perplexity *at final sparsity*; `reported_test_ppl` is \
its test
perplexity. The three are meant for a GPU; `wikitext2_paper_small` and its like are for a CPU, whole vocabulary, small \
layers.

## Classifiers: `model = "mlp"`

An mlp has `num_layers` hidden layers of `hidden_size` units, x <- relu(W x + b), perhaps with `batch_norm` and
`dropout`, and an output layer that is not pruned. It learns a data set of labelled examples: `digits` (carried by
scikit-learn), `mnist1d` (made from its seed by the package of that name) or `mnist` (downloaded at first use, checked
by sha256; without a network put its four `.gz` files into `$BENCH_DATA_DIR/mnist`). Its loss, the mean cross-entropy
of an example in nats, is the logarithm of `train_ppl`, `val_ppl` and `test_ppl`; `val_accuracy`, `test_accuracy` and
their like are shares of examples. Schedules, criteria, lasso, masks, paths, checkpoints and export are those of
language models; a setting that only these have is idle. `scope = "weight_hh"` prunes the weights between hidden layers
alone, for blocks that do not divide an example.

## Ways to prune

`block_size = 1` is unstructured pruning. `threshold` empties blocks whose score is lower, in place of a share;
`schedule = "iterative"` cuts in `prune_rounds` rounds of fine-tuning, with `rewind` back to early weights or until the
validation perplexity has risen (`stop_rise`). `criterion = "hessian"` goes by the loss's second-order rise.
`prune_biases` masks the biases of rows of which no block is kept (`bias_sparsity`), so that such a neuron is constant.
`scale_penalty` draws the scales of batch normalisation to zero, and neurons below `scale_threshold` go whole at
`scale_at` (`kept_neurons`). A threshold and a target, regrowth with anything but a fixed share, gates of an mlp: such
pairs are refused in one line.

## Sparse storage: `form`

A cell of kind `storage` keeps one matrix in a `form` and says what that takes: `value_bytes` and `index_bytes` of the \
tensors that are
multiplied, `file_bytes` of a file. The file is an uncompressed `.npz`: numpy alone reads it, nothing in it is \
pickled, and what it adds
depends on the number of arrays only (about 250 bytes each), where torch.save aligns and numbers its records. bfloat16 \
is in it as int16. It is read
again, compared bit by bit, and what was read is multiplied: torch.mm of torch's sparse tensors, `block_sparse_matmul` \
of blocks, on a frozen
weight, for which the CPU's kernel keeps a copy in its own order (`packed_bytes`).

The zeros of a `what = "weight"` are random blocks; its baseline has none. Those of an `activation` are what a ReLU \
makes: normal values lowered by
their own quantile `target_sparsity` before it, so that exactly this share of them, to the nearest element, is zero; \
the baseline multiplies the same values as they
are. 16 bits: torch adds up coordinates in 16 bits, which misses the float64 reference (`wrong`), and has no \
compressed rows of them on a CPU.

## Advice: `advise/`

`python -m bench advise` keeps what it measures of somebody's model in `advise/NAME`. `gemm.parquet` and
`lstm.parquet` hold cells as those of any sweep. `layers.parquet` has a row for each layer, passes, block size and
sparsity: the cells (`cells`) whose times, each done so many `times`, add up to the layer's; why it stays dense where it
does (`reason`); its bytes; the share of the squared norm that pruning by magnitude takes (`lost`), and that of as many
blocks at random (`lost_at_random`). `model.parquet`, of a factory with example inputs, has the whole model, dense and
sparsified in pairs, its largest `error` against the same model with zeros, and the `cosine` of its outputs with the
unpruned one's. What each column is stands in the tables' own metadata. `python -m analysis advice NAME` makes
`report.html` of them.

## The finished model: `export`

The last row of a cell that pruned says what pruning left for inference: the masks merged into the weights, the weights
stored as BSR, written, loaded again, evaluated and timed against the dense model.

Units that nothing reads, or that stay as they are, are dead: `live_units` counts the others. Without them, in whole
blocks of units, the model computes the same, up to the order of sums (`bench.pruning.exported.narrowed`): columns
`narrowed_*` and `inference_narrowed_ms`. A neuron that is constant hands its value to the biases above.

Its weights are frozen: `BSRMatrix.freeze()` copies the values where nobody can change them, so that the CPU's kernels
pack them once and keep that. It costs the copy and one or two packed ones as large; `unfreeze()` gives an ordinary
matrix. Of an ordinary one the values are packed at each product, about 0.3 ms for W 4608 × 1152 at ρ 0.8, which is
what the product takes at n = 20: torch does not tell of every change.

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
    """The text of analysis/loading/columns.json: a column a line, settings with their default."""
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
