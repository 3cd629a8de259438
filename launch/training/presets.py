"""What `trimvla train` can train: for each preset its recipe, words and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trimvla.launch.training.method import COGACT, FLOW, Method
from trimvla.launch.training.regrid import start_in_window
from trimvla.policies.cogact import checkpoint
from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.tokenizer import build_tokenizer, extend_tokenizer
from trimvla.policies.sizes.config import PRESETS, PolicyConfig
from trimvla.policies.training.dataset import make_tokenizer
from trimvla.policies.training.flow_presets import FLOW_PRESETS
from trimvla.policies.training.flow_trainer import FlowRecipe
from trimvla.policies.training.trainer import Recipe
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.own_objects import is_own, load_object
from trimvla.sim.simpler import demonstrations as simpler_demonstrations
from trimvla.sim.simpler.twins import TWINS
from trimvla.sim.simpler.view import WORKSPACE, View
from trimvla.sim.tabletop import demonstrations, scene


@dataclass(frozen=True)
class TrainingPreset:
    """What one preset trains, and how.

    Example:
        >>> from dataclasses import replace
        >>> from trimvla.launch import TrainingPreset, training_presets
        >>> short = replace(training_presets()["tabletop"], episodes_per_shard=3)
        >>> isinstance(short, TrainingPreset)
        True
    """

    cfg: Any
    """The policy's config; its name is the key of the statistics."""
    recipe: Any
    """A frozen dataclass with all that shapes the result besides config and data."""
    tokenizer: Callable[[Any], Tokenizer]
    nouns: tuple[str, ...]
    make_shards: Callable[..., Iterator[tuple[int, int]]]
    episodes_per_shard: int
    """Of each task, where a shard number stands for one shard of each."""
    tasks: tuple[str, ...] = ()
    """That a run can be restricted to; none where there is only one."""
    symmetric: bool = False
    """Whether actions are scaled alike in both directions."""
    method: Method = COGACT


def tabletop_tokenizer(cfg: PolicyConfig) -> Tokenizer:
    """Made from the instructions of the tabletop."""
    return make_tokenizer(cfg, scene.all_instructions())


def flow_tokenizer(cfg: Any) -> Tokenizer:  # noqa: ANN401
    """Made from the instructions of the tabletop, as pi0 prompts: each ends in a newline."""
    return build_tokenizer((f"{text}\n" for text in scene.all_instructions()), cfg.language.vocab)


def widowx_tokenizer(cfg: PolicyConfig) -> Tokenizer:
    """The shipped tabletop's with the new words, so that weights trained with that one still know
    the old words.
    """
    path = bundles.resolve("tabletop") / "tokenizer.json"
    return extend_tokenizer(Tokenizer.from_file(str(path)), simpler_demonstrations.WORDS)


def start_window(cfg: PolicyConfig, path: Path) -> CogAct:
    """Weights to start from, of a policy that saw the window or of one that saw the whole."""
    return start_in_window(checkpoint.load(path), cfg, WORKSPACE.shares)


def widowx(cfg: PolicyConfig, view: View, method: Method) -> TrainingPreset:
    """A policy for SimplerEnv's WidowX tasks that sees a part of the official image."""
    return TrainingPreset(
        cfg,
        Recipe(
            steps=1400,
            pictures=32,
            sentences=1,
            draws=3,
            learning_rate=6e-4,
            warmup=50,
            ema=0.99,
            pointer_weight=0.2,
            tokens=((64, 0.5), (128, 0.4), (256, 0.1)),
            compile=False,
            emphasis=(1, 1, 1, 1, 1, 3, 1),
        ),
        widowx_tokenizer,
        simpler_demonstrations.NOUNS,
        partial(simpler_demonstrations.make_shards, view=view),
        simpler_demonstrations.SHARD_EPISODES,
        tuple(TWINS),
        symmetric=True,
        method=method,
    )


def tabletop_flow(cfg: Any) -> TrainingPreset:  # noqa: ANN401
    """A policy of pi0's shape for the tabletop."""
    return TrainingPreset(
        cfg,
        FlowRecipe(),
        flow_tokenizer,
        (*scene.OBJECT_KINDS, *scene.TARGET_KINDS),
        partial(demonstrations.make_shards, wrist=True),
        demonstrations.SHARD_EPISODES,
        method=FLOW,
    )


@cache
def training_presets() -> dict[str, TrainingPreset]:
    """Name -> what is trained, and how.

    Example:
        >>> from trimvla.launch import training_presets
        >>> training_presets()["tabletop"].cfg.language.layers
        16
    """
    window = replace(COGACT, start=start_window)
    return {
        "tabletop": TrainingPreset(
            PRESETS["tabletop"],
            Recipe(),
            tabletop_tokenizer,
            (*scene.OBJECT_KINDS, *scene.TARGET_KINDS),
            demonstrations.make_shards,
            demonstrations.SHARD_EPISODES,
        ),
        **{
            name: tabletop_flow(FLOW_PRESETS[name])
            for name in ("tabletop-flow", "tabletop-flow-front")
        },
        "widowx": widowx(PRESETS["widowx"], simpler_demonstrations.SMALL, COGACT),
        "widowx-window": widowx(PRESETS["widowx-window"], simpler_demonstrations.FINE, window),
    }


def find_training_preset(name: str) -> TrainingPreset:
    """One of ours, or the user's own, `module:attribute`, which is imported.

    Raises ConfigError where there is none, or it is something else.
    """
    ours = training_presets()
    if name in ours:
        return ours[name]
    if not is_own(name):
        known = ", ".join(ours)
        raise ConfigError(
            f"expected one of {known}, or module:attribute of your own, for --preset, got {name!r}"
        )
    found = load_object(name, "--preset")
    if not isinstance(found, TrainingPreset):
        raise ConfigError(
            f"--preset: expected a TrainingPreset, got {type(found).__name__} as {name!r}"
        )
    return found
