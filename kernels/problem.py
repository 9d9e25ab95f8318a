"""Problems that backends are asked to solve, products and LSTM layers; what a launch is, what a backend declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from kernels.blockmask import BlockMask, grid_shape, padded_share
from kernels.bsr import BSRMatrix
from kernels.system.driver import missing_gpu
from kernels.system.resources import UnsupportedError, refusal
from kernels.tensors.padding import in_blocks, padded, shortened

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
OPS = ("dsd", "dsd_t", "sdd")
MATHS = ("ieee", "tf32")
LAYOUTS = ("row", "column")
CALLS = ("launch", "operator")


def require(noun: str, name: str, accepted: Sequence[str]) -> None:
    """ValueError where `name` is not accepted."""
    if name not in accepted:
        raise ValueError(f"unknown {noun} {name!r}; accepted: {', '.join(accepted)}")


def require_math(math: str, dtype: str) -> None:
    """ValueError where `math` is unknown, or other than exact for a type that has no other."""
    require("math", math, MATHS)
    if math == "tf32" and dtype != "float32":
        raise ValueError(f"tf32 is a way to multiply float32, not {dtype}")


def laid(matrix: Tensor, layout: str) -> Tensor:
    """`matrix` in one of LAYOUTS, copied only where it lies otherwise."""
    return matrix.mT.contiguous().mT if layout == "column" else matrix.contiguous()


class _Problem:
    """What all problems share: settings, and operands that are made at their first use, from a normal distribution."""

    block_size: int
    sparsity: float  # share of empty blocks wanted, in [0, 1]
    dtype: str  # a key of DTYPES
    device: str  # 'cpu' or 'cuda'
    seed: int
    math: str  # of float32 on a GPU: 'ieee' multiplies exactly, 'tf32' with 10 bits of fraction
    pad: bool  # weights need not be whole blocks: zeros fill up the last ones
    GATES: ClassVar[int] = 1  # whose rows are padded by themselves

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        """The pattern of every block-sparse weight, by name."""
        raise NotImplementedError

    def draw(self) -> None:
        """Make every operand now."""
        raise NotImplementedError

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def missing_device(self) -> str | None:
        """Why the operands cannot be made, or not be multiplied as wanted, on the device here; or None.

        ResourceError where the device does not answer today.
        """
        if self.device == "cuda" and (missing := missing_gpu()):
            return missing
        return "tf32 is arithmetic of GPUs" if self.device == "cpu" and self.math == "tf32" else None

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.seed * 16 + stream)

    def _random_mask(self, stream: int, rows: int, cols: int) -> BlockMask:
        """Of the weight in whole blocks; each of them holds elements of the weight, so padding empties none."""
        whole = in_blocks((rows, cols), self.GATES, self.block_size)
        return BlockMask.random(*whole, self.block_size, self.sparsity, self._generator(stream))

    def shape_of(self, name: str) -> tuple[int, int]:
        """Rows and columns of a weight, without padding."""
        raise NotImplementedError

    @property
    def padded(self) -> bool:
        """Whether a weight is filled up with zeros."""
        return self.pad and any(mask.shape != self.shape_of(name) for name, mask in self.masks.items())

    def blocks_of(self, name: str, weight: Tensor) -> BSRMatrix:
        """The kept blocks of that weight, or of its gradient, in whole blocks. weight: [rows, cols] without padding."""
        mask = self.masks[name]
        return BSRMatrix.from_dense(padded(weight, self.GATES, mask.shape), mask)

    def padded_share(self) -> float:
        """Share of the elements of all kept blocks that is padding; 0 where no block is kept."""
        return padded_share(self.masks, {name: self.shape_of(name) for name in self.masks}, self.GATES)

    def _kept(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """The elements of that weight in kept blocks: bool[rows, cols]."""
        return self.masks[name].inside(self.shape_of(name), self.GATES, device)

    def _normal(self, stream: int, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator(stream), dtype=torch.float32, device="cpu") * scale
        return drawn.to(device=self.device, dtype=self.torch_dtype).contiguous()

    def _pruned(self, name: str, weight: Tensor) -> Tensor:
        return torch.where(self._kept(name, self.device), weight, weight.new_zeros(()))


@dataclass(frozen=True)
class GemmProblem(_Problem):
    """A product with a block-sparse W[m, k], and what training needs of it.

    op 'dsd': Y[m, n] = W X[k, n]; 'dsd_t': Y[k, n] = W^T G[m, n] (the gradient of X); 'sdd': the kept blocks of
    G[m, n] X[k, n]^T (the gradient of W), [nnzb, b, b]. given_mask: a pattern instead of a random one (then `sparsity`
    is only a label). math: of float32, 'ieee' or 'tf32'. layout: how X, G and the result lie on a CPU, 'row' by row or
    'column' by column, as activations [n, k] do; on a GPU each backend takes them as it needs them. call: a 'launch' is
    prepared beforehand, the 'operator' is what people call, which allocates Y; of dsd alone, since it is by autograd
    that the others are called. pad: block_size need not divide m and k. A launch multiplies operands that lie padded
    (`in_whole_blocks`), the operator copies them.
    """

    m: int
    k: int
    n: int
    block_size: int
    sparsity: float
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    given_mask: BlockMask | None = field(default=None, compare=False)
    op: str = "dsd"
    math: str = "ieee"
    layout: str = "row"
    call: str = "launch"
    pad: bool = False

    def __post_init__(self) -> None:
        grid_shape(self.m, self.k, self.block_size, self.pad)
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        require("dtype", self.dtype, list(DTYPES))
        require("op", self.op, OPS)
        require("layout", self.layout, LAYOUTS)
        require("call", self.call, CALLS)
        if self.call == "operator" and self.op != "dsd":
            raise ValueError(f"call 'operator' is of dsd, not of {self.op}, which autograd calls")
        require_math(self.math, self.dtype)
        whole = in_blocks((self.m, self.k), 1, self.block_size)
        if self.given_mask is not None and self.given_mask.shape != whole:
            to = "" if whole == (self.m, self.k) else f", padded to {whole}"
            raise ValueError(f"the mask covers {self.given_mask.shape}, the weight is {(self.m, self.k)}{to}")

    @cached_property
    def mask(self) -> BlockMask:
        return self._random_mask(0, self.m, self.k) if self.given_mask is None else self.given_mask

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        return {"weight": self.mask}

    def shape_of(self, name: str) -> tuple[int, int]:  # noqa: ARG002
        return self.m, self.k

    @cached_property
    def in_whole_blocks(self) -> GemmProblem:
        """The same product with zeros behind the rows and columns of the weight, of X and of G."""
        rows, cols = self.mask.shape
        made = replace(self, m=rows, k=cols, given_mask=self.mask, pad=False)
        vars(made).update(
            full_weight=padded(self.full_weight, 1, (rows, cols)),
            x=laid(padded(self.x, 1, (cols, self.n)), self.layout),
            grad=laid(padded(self.grad, 1, (rows, self.n)), self.layout),
        )
        return made

    @cached_property
    def full_weight(self) -> Tensor:
        """[m, k], no block emptied: what the dense baseline multiplies (GEMM libraries are faster on zeros)."""
        return self._normal(1, self.m, self.k)

    @cached_property
    def weight(self) -> Tensor:
        """[m, k], zero outside the kept blocks."""
        return self._pruned("weight", self.full_weight)

    @cached_property
    def x(self) -> Tensor:
        """[k, n], in the layout."""
        return laid(self._normal(2, self.k, self.n), self.layout)

    @cached_property
    def grad(self) -> Tensor:
        """G, the gradient of Y = W X: [m, n], in the layout."""
        return laid(self._normal(3, self.m, self.n), self.layout)

    def draw(self) -> None:
        _ = self.factors(dense=True), self.factors(dense=False), self.in_whole_blocks if self.padded else None

    def factors(self, dense: bool) -> tuple[Tensor, Tensor]:
        """The two matrices that are multiplied; dense: with the full weight."""
        weight = self.full_weight if dense else self.weight
        return {"dsd": (weight, self.x), "dsd_t": (weight.T, self.grad), "sdd": (self.grad, self.x.T)}[self.op]

    def wanted(self, product: Tensor) -> Tensor:
        """What of the whole product is asked for: of sdd the kept blocks, else everything."""
        return self.blocks_of("weight", product).data if self.op == "sdd" else product


PASSES = ("forward", "forward_backward")
SCOPES = ("all", "weight_hh")
BIASES = ("bias_ih", "bias_hh")


@dataclass(frozen=True)
class LstmProblem(_Problem):
    """One layer of `torch.nn.LSTM` (gates i, f, g, o) over all time steps, with block-sparse weights.

    passes 'forward': y, h and c, as in inference; 'forward_backward': also the gradients of x, the weights (at the kept
    blocks) and the biases, from grad_y alone. scope 'all': both weights are block-sparse; 'weight_hh': the recurrent
    one. math: of float32, 'ieee' or 'tf32'. pad: block_size need not divide hidden_size and input_size; a layer pads
    its weights, each gate by itself, and x and the state of each launch, as `kernels.modules.BlockSparseLSTM` does.
    """

    GATES = 4

    input_size: int
    hidden_size: int
    batch_size: int
    steps: int
    block_size: int
    sparsity: float
    passes: str = "forward_backward"
    scope: str = "all"
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    math: str = "ieee"
    pad: bool = False

    def __post_init__(self) -> None:
        grid_shape(self.hidden_size, self.hidden_size, self.block_size, self.pad)  # so that no gates share a block row
        if self.scope == "all":
            grid_shape(self.hidden_size, self.input_size, self.block_size, self.pad)
        if min(self.batch_size, self.steps, self.input_size) < 1:
            raise ValueError("input_size, batch_size and steps must be at least 1")
        require("dtype", self.dtype, list(DTYPES))
        require_math(self.math, self.dtype)
        require("passes", self.passes, PASSES)
        require("scope", self.scope, SCOPES)

    @property
    def masks(self) -> Mapping[str, BlockMask]:
        return self._masks

    def shape_of(self, name: str) -> tuple[int, int]:
        return 4 * self.hidden_size, self.hidden_size if name == "weight_hh" else self.input_size

    @cached_property
    def _masks(self) -> dict[str, BlockMask]:
        masks = {"weight_hh": self._random_mask(1, 4 * self.hidden_size, self.hidden_size)}
        if self.scope == "all":
            masks["weight_ih"] = self._random_mask(0, 4 * self.hidden_size, self.input_size)
        return masks

    @cached_property
    def full_weights(self) -> dict[str, Tensor]:
        """weight_ih [4 hidden, in] and weight_hh [4 hidden, hidden], of scale 1 / sqrt(hidden) as torch begins."""
        rows, scale = 4 * self.hidden_size, self.hidden_size**-0.5
        return {
            "weight_ih": self._normal(2, rows, self.input_size, scale=scale),
            "weight_hh": self._normal(3, rows, self.hidden_size, scale=scale),
        }

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The same, zero outside the kept blocks."""
        return {n: self._pruned(n, w) if n in self.masks else w for n, w in self.full_weights.items()}

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """bias_ih and bias_hh: [4 hidden]."""
        scale = self.hidden_size**-0.5
        return {name: self._normal(4 + i, 4 * self.hidden_size, scale=scale) for i, name in enumerate(BIASES)}

    @cached_property
    def x(self) -> Tensor:
        """[steps, batch, in]."""
        return self._normal(6, self.steps, self.batch_size, self.input_size)

    @cached_property
    def state(self) -> tuple[Tensor, Tensor]:
        """h0 and c0: [1, batch, hidden]."""
        shape = (1, self.batch_size, self.hidden_size)
        return self._normal(7, *shape), self._normal(8, *shape)

    @cached_property
    def grad_y(self) -> Tensor:
        """[steps, batch, hidden]."""
        return self._normal(9, self.steps, self.batch_size, self.hidden_size)

    def draw(self) -> None:
        _ = self.weights, self.biases, self.x, self.state, self.grad_y


Problem = GemmProblem | LstmProblem


class Launch(Protocol):
    """A prepared problem. Calling it launches the kernel on the current stream and does nothing else."""

    kernel: str  # what ran, e.g. 'native avx512' or 'torch.mm'
    dense: bool  # whether the weights are those with no block emptied, as the baselines' are
    weight_bytes: int  # values of the stored block-sparse weights
    index_bytes: int  # their indices

    def __call__(self) -> None: ...

    def outputs(self) -> dict[str, Tensor]:
        """The last launch's results by name, untimed: of a product 'output', of an LSTM layer y, h, c, grad_x ..."""
        ...

    def poison(self) -> None:
        """Fill the output buffers with NaN where the backend owns any, so that unwritten elements show."""
        ...


Variants = Mapping[str, Callable[[], Launch]]


class Unpadded:
    """A launch over whole blocks as one of the product without padding: its rows lie behind each other in either."""

    def __init__(self, launch: Launch, problem: GemmProblem) -> None:
        self.launch, self.problem = launch, problem
        self.kernel, self.dense = launch.kernel, launch.dense
        self.weight_bytes, self.index_bytes = launch.weight_bytes, launch.index_bytes

    def __call__(self) -> None:
        self.launch()

    def outputs(self) -> dict[str, Tensor]:
        found, rows = self.launch.outputs(), {"dsd": self.problem.m, "dsd_t": self.problem.k}
        return found if self.problem.op == "sdd" else {"output": shortened(found["output"], rows[self.problem.op])}

    def poison(self) -> None:
        self.launch.poison()


@dataclass(kw_only=True, eq=False)
class Backend:
    """One implementation of the problems, or of some of them: what it has, and the reasons for the rest.

    blocks: calls that multiply whole blocks: of a product whose sizes these do not divide they get it padded.
    product, layer: what prepares a launch of each (compile, convert, allocate, choose; untimed), None where it has
    none. Each reason is the whole line that a row gets, but for `instead`, which says who has layers.
    """

    name: str
    product: Callable[[GemmProblem], Launch] | None = None
    layer: Callable[[LstmProblem], Launch] | None = None
    instead: str = ""
    no_sdd: str = ""  # of its products not that one
    blocks: Sequence[str] = CALLS
    devices: Sequence[str] = ("cpu", "cuda")
    elsewhere: str = ""  # on any other device
    layouts: Sequence[str] = ("row",)  # of products on a CPU
    calls: Sequence[str] = ("launch",)  # of products
    dtypes: Sequence[str] = tuple(DTYPES)
    no_dtype: str = ""  # for any other type, with {dtype}
    needs: Callable[[Any], object] = lambda _: None  # of a problem: UnsupportedError where that is not here
    variants: Callable[[GemmProblem], Variants] = lambda _: {}  # what a tuner times, by parameters as JSON

    def unsupported(self, problem: Problem) -> str | None:
        """Why this backend cannot solve `problem` here, or None.

        The answer is kept. What the machine lacks today is none: that raises, as ResourceError or in words of its own.
        """
        return refusal(self.require, problem)

    def require(self, problem: Problem) -> None:
        """UnsupportedError where it cannot solve `problem` here."""
        self.require_declared(problem)
        if missing := problem.missing_device():
            raise UnsupportedError(missing)
        self.needs(problem)

    def require_declared(self, problem: Problem) -> None:
        """UnsupportedError where it was not made for `problem`, whatever the machine."""
        if isinstance(problem, LstmProblem):
            if self.layer is None:
                raise UnsupportedError(f"{self.name} has no LSTM layer{self.instead}")
        elif self.product is None:
            raise UnsupportedError(f"{self.name} computes LSTM layers only")
        elif self.no_sdd and problem.op == "sdd":
            raise UnsupportedError(self.no_sdd)
        elif problem.device == "cpu" and problem.layout not in self.layouts:
            raise UnsupportedError(f"{self.name} takes X row by row only")
        elif problem.call not in self.calls:
            raise UnsupportedError(f"{self.name} is timed as a prepared launch only")
        if problem.device not in self.devices:
            raise UnsupportedError(self.elsewhere)
        if problem.dtype not in self.dtypes:
            raise UnsupportedError(self.no_dtype.format(dtype=problem.dtype))

    def prepare(self, problem: Problem) -> Launch:
        """A launch of `problem`, which must be supported."""
        if isinstance(problem, LstmProblem):
            assert self.layer is not None
            return self.layer(problem)
        assert self.product is not None
        if problem.call in self.blocks and problem.padded:
            return Unpadded(self.product(problem.in_whole_blocks), problem)
        return self.product(problem)
