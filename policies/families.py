"""The families of policies: one row each, and the only place where a family is looked up by name,
config or files.

Nothing outside a family's own folder depends on which family it is: it takes the row and calls it.
A row is a `Family`, named by "module:attribute" and imported when asked for; a family of one's own
is named the same way where a name is expected. Imports no torch, and neither does a row: its
functions do (`lazily`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own, load_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trimvla.policies.checkpoint import Checkpoint
    from trimvla.policies.sizes.cost_report import CostReport
    from trimvla.policies.sizes.counts import Trimmable
    from trimvla.policies.sizes.memory import MemoryPlan
    from trimvla.policies.sizes.roofline import Floors
    from trimvla.policies.stage import Stage
    from trimvla.policies.streaming import Streaming
    from trimvla.policies.trimming.calibrate import Statistics
    from trimvla.runtime.bundle.inputs_and_output import InputsAndOutput
    from trimvla.runtime.bundle.manifest_types import TensorSpec
    from trimvla.runtime.bundle.plan import Plan

FAMILIES: dict[str, str] = {
    "act": "trimvla.policies.act.family:FAMILY",
    "cogact": "trimvla.policies.cogact.family:FAMILY",
    "dbcogact": "trimvla.policies.dbcogact.family:FAMILY",
    "pi0": "trimvla.policies.pi0.family:PI0",
    "pi05": "trimvla.policies.pi0.family:PI05",
    "smolvla": "trimvla.policies.smolvla.family:FAMILY",
}
"""Name, as a config's `family` has it -> "module:attribute" of its row.

A config without one is of "cogact".
"""
FIRST = "cogact"
_named: dict[str, Family] = {}  # rows of somebody's own that a person has named in this process


@dataclass(frozen=True, kw_only=True)
class Family:
    """Everything that is particular to one family.

    `cfg` is of its `config_type`, `policy` what `build` gives.
    """

    name: str
    config_type: type
    """A frozen struct with `fingerprint`, `to_dict`, `from_dict`; `family: Literal[name]` but
    for the first family.
    """
    presets: Mapping[str, Any]
    """Configs of published sizes, by name."""
    recognises: Callable[[Path], bool]
    """directory -> whether it holds a checkpoint of this family, by names of files and config.json
    alone.
    """
    looks_for: str
    """What `recognises` looks for, for the error's words: "config.json with type 'smolvla'"."""
    tokenizer_hint: str
    """Which tokenizer.json the family needs and where users have it, for the error's words; empty
    where it reads no instruction.
    """
    open_checkpoint: Callable[..., Checkpoint]
    """(directory, *, preset=None, checkpoint=None, statistics_key=None, tokenizer=None);
    `checkpoint` only where `several_checkpoints`. Strict: a missing or unknown weight, statistics
    or key is a CheckpointError or ConfigError with what there is. A missing tokenizer is None, not
    an error.
    """
    build: Callable[[Any, Mapping[str, Tensor]], nn.Module]
    """(cfg, weights by our names) -> the policy in float32 and `eval`, weights put in place one at
    a time. It has
    `cfg` and `plan`."""
    layout: Callable[[Any], tuple[Mapping[str, str], frozenset[str]]]
    """cfg -> ({name in the checkpoint: our name}, names that are stored and never reach an
    action).
    """
    trim: Callable[[Any, Plan], Any]
    """(dense policy, plan) -> the policy under the plan, with its weights shared; `policy.plan`
    is the plan.
    """
    check_plan: Callable[[Plan, Any], None]
    """(plan, cfg): ConfigError that names the field where the plan does not fit."""
    stages: Callable[[Any, Plan, bool], tuple[Stage, ...]]
    """(cfg, plan, guided) -> stages in their order. Plain: those that do not end in "_guided".
    Guided: the same with "<name>_guided" in place of <name>; such a stage takes `known` and
    `weight` too and gives `guided_actions`.
    """
    tensor_specs: Callable[[Any, Plan], dict[str, TensorSpec]]
    """(cfg, plan) -> every tensor that crosses a stage's border, by name."""
    example_inputs: Callable[[Any, Plan, int, torch.Generator], dict[str, Tensor]]
    """(cfg, plan, prompt bucket, generator) -> random inputs of the whole chain, by tensor name;
    bucket 0 for a family that reads no instruction.
    """
    describe: Callable[[Checkpoint, Plan], InputsAndOutput]
    """What the runtime must know; `action` with the family's defaults for kinds and control_hz."""
    cost: Callable[..., CostReport]
    """(cfg, plan, cameras=None, prompt=None) -> parameters, flops and weight_bytes, whole and by
    stage, as
    `sizes.cost.report`. None: as the config has it; the smallest bucket."""
    trimmable: Callable[[Any], Trimmable]
    """cfg -> what counts of layers, MLP channels, visual tokens and steps refer to."""
    reference: str
    """"module:attribute" of a `ReferenceFamily` in export/reference: how a reference directory is
    opened, and what is
    compared (export/reference/groups.py)."""
    image_tokens: Callable[[Any, Plan], int] | None = None
    """(cfg, plan) -> visual tokens of one image of the plan's size, before patches leave; None: as
    `trimmable` says.
    """
    lend_weights: Callable[..., Any] | None = None
    """(directory, cfg, checkpoint=None) -> `cogact.weights.Weights`, for an export that never holds
    the whole policy; None: it is loaded whole.
    """
    streaming: Streaming | None = None
    """What an export of random weights at a published size needs, which never holds the policy;
    None: not to be had, or (`lend_weights`) in the family's own way.
    """
    calibrates: bool = False
    """Whether `trimming.calibrate` has its frames: what int8 and the planner of
    `trimming.planner` need.
    """
    measure_pairs: Callable[..., Statistics] | None = None
    """(dense policy, samples of input tensors by name, without padding) ->
    `trimming.calibrate.Statistics` of its decoder's layers, each paired with the expert's layer
    that reads it: what `trim` chooses layers by where `calibrates` does not hold.
    """
    planned: frozenset[str] = frozenset(
        ("layers", "tokens", "vision", "recompute", "steps", "guidance")
    )
    """Parts of a plan that `trim` decides by what `measure_pairs` found, or as it is asked; with
    "channels" among them the measured statistics have `worth`.
    """
    memory: Callable[..., MemoryPlan] | None = None
    """(cfg, plan, precision, backend="tensorrt", workspace=WORKSPACE_BYTES) -> what its engines
    need, by `sizes.memory`; None: nobody has worked it out.
    """
    estimate: Callable[..., Floors] | None = None
    """(cfg, plan, device, attained) -> the roofline of a policy that stands for a larger one, as a
    small one of our own does for what it is a model of; None: each stands for itself.
    """
    several_checkpoints: bool = False
    """Whether a directory may hold several files of weights, of which --checkpoint names one."""
    reference_names: tuple[str, ...] = ()
    """What `family` in a reference's architecture.json may be beside `name`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only the family's own parts read."""


def lazily(place: str) -> Callable[..., Any]:
    """A function that imports "module:attribute" when it is called, and calls that."""

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return load(place)(*args, **kwargs)

    call.__name__ = call.__qualname__ = place.rpartition(":")[2]
    return call


def load(place: str) -> Any:  # noqa: ANN401
    """What "module:attribute" names.

    Raises:
        ConfigError: no such form, module or attribute.
    """
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"expected module:attribute, got {place!r}")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"expected {place!r} as module:attribute, got: {error}") from error


def find_family(name: str) -> Family:
    """The row of a name, or of "module:attribute" of somebody's own, which is imported.

    For a name that a person has given; `known_family` is for one that stands in a file. ConfigError
    lists the names.
    """
    if name in FAMILIES:
        return load(FAMILIES[name])
    if not is_own(name):
        known = f"a family as one of {sorted(FAMILIES)} or module:attribute"
        raise ConfigError(f"expected {known}, got {name!r}")
    family = load_object(name, "family")
    if not isinstance(family, Family):
        raise ConfigError(f"expected a Family under {name!r}, got {type(family).__name__}")
    _named[name] = family
    _named[family.name] = family
    return family


def known_family(name: str) -> Family:
    """The row of a name that stands in a file: ours, or one that a person has named here before.

    Imports nothing of somebody's own: a manifest runs no code. ConfigError lists the names.
    """
    if name in FAMILIES:
        return load(FAMILIES[name])
    if name not in _named:
        known = sorted({*FAMILIES, *_named})
        words = "code of somebody's own is imported only where you name it: find_family"
        raise ConfigError(f"expected a family as one of {known}, got {name!r}; {words}")
    return _named[name]


def family_name(cfg: Any) -> str:  # noqa: ANN401
    """The family that a config is of: its `family`, or the first."""
    return str(getattr(cfg, "family", FIRST))


def family_of(cfg: Any) -> Family:  # noqa: ANN401
    """The row of a config.

    Example:
        >>> from trimvla.policies import family_of, find_preset
        >>> from trimvla.runtime import Plan
        >>> cfg = find_preset("cogact-base")
        >>> family = family_of(cfg)
        >>> family.name
        'cogact'
        >>> round(family.cost(cfg, Plan()).parameters / 1e9, 2)  # billions
        7.63
    """
    return known_family(family_name(cfg))


def image_tokens(cfg: Any, plan: Plan) -> int:  # noqa: ANN401
    """Visual tokens of one image of the plan's size, before patches leave inside the encoders."""
    family = family_of(cfg)
    if family.image_tokens is not None:
        return family.image_tokens(cfg, plan)
    return family.trimmable(cfg).image_tokens


def visual_tokens(cfg: Any, plan: Plan) -> int:  # noqa: ANN401
    """Visual tokens that a policy's encoders give under the plan, of all its cameras."""
    patches = None if plan.vision is None else plan.vision.patches
    count = image_tokens(cfg, plan) if patches is None else patches.keep
    return family_of(cfg).trimmable(cfg).cameras * count


def parse_config(data: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A config from its JSON form, of the family that its `family` names.

    Raises:
        ConfigError: an unknown family, or a field that is unknown, missing or of another type.
    """
    name = data.get("family", FIRST)
    if not isinstance(name, str):
        raise ConfigError(f"policy config: expected text for 'family', got {type(name).__name__}")
    return known_family(name).config_type.from_dict(data)


def recognise(directory: Path) -> Family:
    """The family whose checkpoint a directory holds. ConfigError lists what was looked for."""
    rows = [find_family(name) for name in FAMILIES]
    found = next((row for row in rows if row.recognises(directory)), None)
    if found is None:
        looked_for = "; ".join(f"{row.name}: {row.looks_for}" for row in rows)
        raise ConfigError(
            f"{directory}: expected a checkpoint of a known family ({looked_for}), got none of them"
        )
    return found


def recognise_reference(name: str) -> Family:
    """The family that `family` in a reference's architecture.json names.

    ConfigError lists the names.
    """
    rows = [find_family(row) for row in FAMILIES]
    found = next((row for row in rows if name == row.name or name in row.reference_names), None)
    if found is None:
        names = sorted({known for row in rows for known in (row.name, *row.reference_names)})
        raise ConfigError(f"architecture.json: expected 'family' as one of {names}, got {name!r}")
    return found


def all_presets() -> Mapping[str, Any]:
    """Every family's presets by name."""
    return {name: cfg for row in FAMILIES for name, cfg in find_family(row).presets.items()}


def find_preset(name: str) -> Any:  # noqa: ANN401
    """A preset's config; ConfigError lists the names.

    Example:
        >>> from trimvla.policies import find_preset
        >>> find_preset("cogact-base").language.layers
        32
    """
    presets = all_presets()
    if name not in presets:
        raise ConfigError(f"expected --preset as one of {sorted(presets)}, got {name!r}")
    return presets[name]
