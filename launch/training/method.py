"""How a policy of one shape is trained by `trimvla train`: its data, trainer and files.

Two methods: the diffusion head's noise (CogACT's shape), and the flow's velocity (pi0's shape, with
several cameras and a state). The verb knows neither. Knows run folders; makes no demonstration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimvla.policies.cogact import checkpoint
from trimvla.policies.training.dataset import Demonstrations
from trimvla.policies.training.flow_dataset import EPSILON, FlowDemonstrations
from trimvla.policies.training.flow_trainer import FlowTrainer
from trimvla.policies.training.trainer import Trainer
from trimvla.runtime.bundle.action_statistics import chosen, read_table
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import read_json

if TYPE_CHECKING:
    from trimvla.launch.training.presets import TrainingPreset


@dataclass(frozen=True)
class Method:
    """What differs between the shapes."""

    load: Callable[[TrainingPreset, Path, Any], Any]
    """(preset, run, cfg) -> demonstrations; writes the run's tokenizer and statistics."""
    trainer: Callable[..., Any]
    """(cfg, recipe, auxiliary outputs, device) -> trainer."""
    start: Callable[[Any, Path], Any]
    """(cfg, file) -> a policy to start from."""
    save: Callable[[Any, Any, Path], Path]
    """(trainer, demonstrations, run) -> where the weights are."""
    curves: tuple[str, ...]
    """Losses that the picture shows; the first is the policy's own."""


def load_demonstrations(preset: TrainingPreset, run: Path, cfg: Any) -> Demonstrations:  # noqa: ANN401
    """All shards, with the run's tokenizer and action statistics, which are made once and then
    kept.
    """
    tokenizer = preset.tokenizer(cfg)
    tokenizer.save(str(run / "tokenizer.json"))
    path = run / "statistics.json"
    known = None
    if path.exists():
        table = read_table(path, error=ConfigError)
        chosen(table, cfg.name, where=str(path), error=ConfigError)
        known = table[cfg.name]
    data = Demonstrations(
        sorted((run / "demos").glob("*.npz")),
        cfg,
        tokenizer,
        nouns=preset.nouns,
        statistics=known,
        symmetric=preset.symmetric,
    )
    path.write_text(json.dumps({cfg.name: data.statistics}) + "\n")
    return data


def save_cogact(trainer: Trainer, data: Demonstrations, run: Path) -> Path:
    """The averaged weights in float16, one file."""
    path = run / "policy.safetensors"
    return checkpoint.save(trainer.averaged_policy(), path, dtype=torch.float16)


def load_flow(preset: TrainingPreset, run: Path, cfg: Any) -> FlowDemonstrations:  # noqa: ANN401
    """The same for several cameras and a state; the statistics stay those of the first shards."""
    tokenizer = preset.tokenizer(cfg)
    tokenizer.save(str(run / "tokenizer.json"))
    path = run / "statistics.json"
    known = read_json(path, "statistics", error=ConfigError)[cfg.name] if path.exists() else None
    shards = sorted((run / "demos").glob("*.npz"))
    data = FlowDemonstrations(shards, cfg, tokenizer, nouns=preset.nouns, statistics=known)
    path.write_text(json.dumps({cfg.name: data.statistics}) + "\n")
    return data


def save_flow(trainer: FlowTrainer, data: FlowDemonstrations, run: Path) -> Path:
    """The averaged weights in float16, in LeRobot's layout: the folder `policy`."""
    from tokenizers import Tokenizer

    from trimvla.policies.pi0.save import save_lerobot

    return save_lerobot(
        trainer.averaged_policy(),
        run / "policy",
        statistics=data.statistics,
        tokenizer=Tokenizer.from_file(str(run / "tokenizer.json")),
        epsilon=EPSILON,
    )


def start_flow(cfg: Any, path: Path) -> Any:  # noqa: ANN401
    """A policy that `save_flow` wrote; the path is that of its weights."""
    from trimvla.policies.pi0.checkpoint import build, open_weights

    return build(cfg, open_weights(path.parent, cfg))


COGACT = Method(
    load=load_demonstrations,
    trainer=Trainer,
    start=lambda cfg, path: checkpoint.load(path, cfg),
    save=save_cogact,
    curves=("diffusion", "aux", "object_cm"),
)
FLOW = Method(
    load=load_flow,
    trainer=FlowTrainer,
    start=start_flow,
    save=save_flow,
    curves=("flow", "aux", "object_cm"),
)
