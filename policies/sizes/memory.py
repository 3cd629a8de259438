"""How much memory a policy's engines need under a plan, and which boards have it.

From sizes alone; no torch.

Running needs the weights of all stages, the largest activations and a CUDA context; building needs
the largest stage some three times over. Weights are exact (`cost`). Activations are estimated, and
small beside them. What building takes was measured with TensorRT for RTX on a CPU; full TensorRT
also times kernels, which nobody has measured for this yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from trimvla.policies.sizes.config import PolicyConfig, VitConfig
from trimvla.policies.sizes.cost import Cost, Shape, stage_costs
from trimvla.runtime.errors import ConfigError

GIB = 1 << 30
MIB = 1 << 20

CONTEXT_BYTES = 512 * MIB  # assumed: CUDA context and the runtime library, once a process
# measured peak: parsed graph, network and serialised engine; 3.0 in fp32 and fp16, 64 to 256 MB
BUILDER_COPIES = 3.0
BUILDER_BASE = {  # the library itself while it builds
    "tensorrt-rtx": 192 * MIB,  # measured
    # "Init builder kernel library: CPU +1154, GPU +1310" [MiB]: NVIDIA/TensorRT#3657 (8.6)
    "tensorrt": 2464 * MIB,
}
WORKSPACE_BYTES = 512 * MIB


@dataclass(frozen=True)
class Precision:
    """Bytes of one weight of the decoder's matrices, of any other weight, and of one activation."""

    matrix: float
    other: float
    activation: float


PRECISIONS = {
    "float32": Precision(4, 4, 4),
    "float16": Precision(2, 2, 2),
    "bfloat16": Precision(2, 2, 2),
    "int8": Precision(1, 2, 2),  # a scale per channel is nothing; vision and head stay in 16 bits
    "int4": Precision(0.5 + 2 / 128, 2, 2),  # one 16-bit scale for 128 weights
}
SPELLINGS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def precision_named(text: str) -> str:
    """The key of `PRECISIONS` that a user means; ConfigError lists them."""
    name = SPELLINGS.get(text, text)
    if name not in PRECISIONS:
        raise ConfigError(f"expected --dtype as one of {[*PRECISIONS, *SPELLINGS]}, got {text!r}")
    return name


@dataclass(frozen=True)
class Board:
    """A board on which CPU and GPU share one memory."""

    title: str
    memory_gib: int

    @property
    def usable_bytes(self) -> int:
        """What is left for a policy: see `SEEN` and `SYSTEM_BYTES`."""
        return int(SEEN * self.memory_gib * GIB) - SYSTEM_BYTES


# CUDA's deviceQuery on an Orin NX 16 GB sees 15,189,422,080 bytes (gist.github.com/atinfinity,
# 8cede915): firmware and kernel keep the rest. Assumed to be the same share on the other boards.
SEEN = 15_189_422_080 / (16 * GIB)
SYSTEM_BYTES = GIB  # assumed: Linux without a desktop, camera and control processes

BOARDS = {  # sizes as in NVIDIA's product names
    "orin-nano": Board("Orin Nano 8 GB", 8),
    "orin-nx": Board("Orin NX 16 GB", 16),
    "orin": Board("AGX Orin 64 GB", 64),
    "thor": Board("AGX Thor 128 GB", 128),
}


class BoardFit(msgspec.Struct, frozen=True, kw_only=True):
    """A plan in one precision: the memory that its engines need, and which boards have it."""

    plan: str
    """Name of the plan."""
    precision: str
    """Of the engines."""
    running_bytes: int
    """All engines loaded [bytes]."""
    building_bytes: int
    """Peak while the largest stage is built [bytes]."""
    weight_bytes: dict[str, int]
    """Stage -> its weights [bytes]."""
    activation_bytes: dict[str, int]
    """Stage -> its activations [bytes]."""
    boards: dict[str, str]
    """Board -> `yes`, `runs` (too little to build it there) or `no`."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by stage, and what building needs on top."""

    precision: str
    weights: dict[str, int]
    activations: dict[str, int]
    builder_base: int
    workspace: int

    @property
    def running(self) -> int:
        """All engines loaded, the largest one's activations: stages run one after the other in one
        scratch memory.
        """
        return sum(self.weights.values()) + max(self.activations.values()) + CONTEXT_BYTES

    @property
    def building(self) -> int:
        """The peak while the largest stage is built; stages are built one after the other."""
        stage = max(
            int(BUILDER_COPIES * self.weights[name]) + self.activations[name]
            for name in self.weights
        )
        return stage + self.builder_base + self.workspace

    def verdict(self, usable: int) -> str:
        """What fits into so many bytes: "yes", "runs" (there is too little to build it), "no"."""
        if self.running > usable:
            return "no"
        return "yes" if self.building <= usable else "runs"

    def fit(self, name: str) -> BoardFit:
        """As a row of a table: which boards have the memory."""
        return BoardFit(
            plan=name,
            precision=self.precision,
            running_bytes=self.running,
            building_bytes=self.building,
            weight_bytes=self.weights,
            activation_bytes=self.activations,
            boards={key: self.verdict(board.usable_bytes) for key, board in BOARDS.items()},
        )


def plan_memory(
    cfg: PolicyConfig,
    shape: Shape,
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """What the engines of a policy need.

    Args:
        cfg: the policy's sizes.
        shape: what is kept of it (`cost.shape_of`, `cost.shape_by_counts`).
        precision: a key of `PRECISIONS`.
        backend: a key of `BUILDER_BASE`.
        workspace: the builder's limit [bytes].

    Raises:
        ConfigError: an unknown precision or backend.
    """
    longest = max(cfg.prompt.buckets)
    costs = stage_costs(cfg, shape, longest)
    table = cfg.language.vocab * cfg.language.width
    elements = activation_elements(cfg, shape, longest)
    return memory_of(costs, table, elements, precision, backend, workspace)


def memory_of(  # noqa: PLR0917 - as `plan_memory`
    costs: Mapping[str, Cost],
    table: int,
    elements: Mapping[str, int],
    precision: str,
    backend: str = "tensorrt",
    workspace: int = WORKSPACE_BYTES,
) -> MemoryPlan:
    """What the engines of any family's stages need.

    Args:
        costs: stage -> its cost; a language model's matrices are in "language".
        table: weights of the decoder's table, which is looked up and not multiplied.
        elements: stage -> numbers that live at once at its widest point.
        precision: a key of `PRECISIONS`.
        backend: a key of `BUILDER_BASE`.
        workspace: the builder's limit [bytes].

    Raises:
        ConfigError: an unknown precision or backend.
    """
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("backend", backend, BUILDER_BASE),
    ):
        if value not in known:
            raise ConfigError(f"expected one of {sorted(known)} for '{name}', got {value!r}")
    kind = PRECISIONS[precision]
    parameters = {name: cost.parameters for name, cost in costs.items()}
    weights = {name: int(kind.other * count) for name, count in parameters.items()}
    if "language" in parameters:
        matrices = parameters["language"] - table
        weights["language"] = int(kind.matrix * matrices + kind.other * table)
    activations = {name: int(kind.activation * count) for name, count in elements.items()}
    return MemoryPlan(precision, weights, activations, BUILDER_BASE[backend], workspace)


def activation_elements(cfg: PolicyConfig, shape: Shape, prompt: int) -> dict[str, int]:
    """Numbers that live at once at each stage's widest point, if nothing is fused: an upper
    estimate.
    """
    language = cfg.language
    head = cfg.head
    visual = cfg.patches if shape.patches is None else shape.patches.keep
    tokens = visual + prompt
    rows = (1 + shape.guided) * (head.horizon + 1)
    picture = cfg.patches * (cfg.vision_width + max(cfg.projector.hidden, default=0))
    return {
        "vision": picture + max(map(vit_elements, cfg.vision)),
        "language": block_elements(tokens, language.width, max(shape.mlp), language.heads),
        "action": block_elements(rows, head.width, int(head.mlp_ratio * head.width), head.heads),
    }


def vit_elements(vit: VitConfig) -> int:
    """One encoder."""
    return block_elements(vit.prefix + vit.patches, vit.width, vit.mlp_hidden, vit.heads)


def block_elements(
    tokens: int, width: int, hidden: int, heads: int, keys: int | None = None
) -> int:
    """Stream, q, k, v, context and scores, or stream and both halves of a gated MLP; each token
    looks at `keys`, or at all tokens where it is none.
    """
    seen = tokens if keys is None else keys
    return tokens * max(5 * width + heads * seen, width + 2 * hidden)


def require_memory(plan: MemoryPlan, usable: int, where: str, *, run_here: bool = True) -> None:
    """Refuse a plan that does not fit.

    Args:
        plan: what is needed.
        usable: what there is [bytes].
        where: its name in the message.
        run_here: whether the engines must also run there, not only be built.

    Raises:
        ConfigError: too little memory; names what is needed, what there is, and what would help.
    """
    fits = plan.building <= usable and (not run_here or plan.running <= usable)
    if fits:
        return
    needs = f"{plan.building / GIB:.1f} GiB to build and {plan.running / GIB:.1f} GiB to run"
    stage = max(plan.weights, key=lambda name: plan.weights[name])
    share = f"stage '{stage}' alone has {plan.weights[stage] / GIB:.1f} GiB of weights"
    raise ConfigError(
        f"{where} is too small: the engines need {needs} in {plan.precision} ({share}),"
        f" {usable / GIB:.1f} GiB are usable; keep fewer layers or channels (`trimvla cost"
        " --boards` shows what fits), or take a lower precision"
    )


def usable_on(board: str) -> int:
    """Bytes that a policy can have on a board; ConfigError lists the boards."""
    if board not in BOARDS:
        raise ConfigError(f"expected one of {list(BOARDS)} for 'board', got {board!r}")
    return BOARDS[board].usable_bytes
