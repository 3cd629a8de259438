"""Where a policy comes from: a run folder, a bundle with its checkpoint beside it, or a checkpoint
of
any family as its makers publish it, recognised by its files.

Knows places and the table of families; decides nothing about what is made of the policy.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from trimvla.export.verify import beside
from trimvla.policies.checkpoint import Checkpoint
from trimvla.policies.families import (
    FAMILIES,
    Family,
    family_of,
    find_family,
    parse_config,
    recognise,
)
from trimvla.policies.own_file import OwnWeights, build_own, load_own, open_own
from trimvla.policies.statistics import read_openvla
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.errors import CheckpointError, ConfigError

WEIGHTS = "policy.safetensors"
TOKENIZER = "tokenizer.json"
STATISTICS = ("statistics.json", "dataset_statistics.json")  # ours, and OpenVLA's


def find_source(source: Path) -> Path:
    """The folder that is meant: a path, or the name of a shipped bundle."""
    return source if source.exists() else bundles.resolve(str(source))


def is_official(source: Path) -> bool:
    """Whether the source is neither a run folder nor a bundle."""
    return not (source / WEIGHTS).exists() and not (source / bundles.MANIFEST).exists()


def open_source(
    source: Path,
    *,
    preset: str | None = None,
    checkpoint: str | None = None,
    statistics_key: str | None = None,
    tokenizer: Path | None = None,
) -> Checkpoint:
    """The checkpoint of a source, opened and checked; nothing large is read.

    Args:
        source: a folder, see `find_source`.
        preset: sizes, where a checkpoint does not hold its own.
        checkpoint: name of the file of weights, where there are several.
        statistics_key: which data set, where there are several.
        tokenizer: `tokenizer.json`, where it does not lie in the source.

    Raises:
        ConfigError: no known checkpoint, with what was looked for; no preset, statistics or key; no
            file under `tokenizer`.
        CheckpointError: weights that are missing, unknown or of another shape.
    """
    if not is_official(source):
        return _own_checkpoint(source, statistics_key, tokenizer)
    family = official_family(source)
    if tokenizer is not None and not tokenizer.is_file():
        raise ConfigError(
            f"expected the policy's tokenizer.json for --tokenizer, got no file at {tokenizer}; "
            f"{family.tokenizer_hint}"
        )
    if checkpoint is not None and not family.several_checkpoints:
        raise ConfigError(
            f"expected no --checkpoint for family '{family.name}', got {checkpoint!r}"
        )
    named = {"checkpoint": checkpoint} if family.several_checkpoints else {}
    return family.open_checkpoint(
        source, preset=preset, statistics_key=statistics_key, tokenizer=tokenizer, **named
    )


def official_family(source: Path) -> Family:
    """Whose checkpoint a folder holds. ConfigError names what was looked for."""
    try:
        return recognise(source)
    except ConfigError as error:
        ours = f"our own: {WEIGHTS} of a run, or {bundles.MANIFEST} of a bundle"
        raise ConfigError(f"{error}; {ours}") from None


def build_policy(opened: Checkpoint) -> nn.Module:
    """The dense policy of an opened checkpoint, in float32 on the CPU.

    CheckpointError where weights do not fit.
    """
    if isinstance(opened.weights, OwnWeights):
        return build_own(opened.cfg, opened.weights, opened.directory)
    return family_of(opened.cfg).build(opened.cfg, opened.weights)


def load_policy(source: Path, preset: str | None, name: str | None = None) -> nn.Module:
    """The torch policy of a source; `name` is that of the file of weights, where there are several.

    Raises what `open_source` and `build_policy` raise; statistics are not needed where they are
    ours.
    """
    if is_official(source):
        key = any_key(source)
        return build_policy(open_source(source, preset=preset, checkpoint=name, statistics_key=key))
    path = own_weights(source)
    cfg, weights = open_own(path)
    return build_own(cfg, weights, path)


def policy_of_bundle(
    directory: Path, source: Path | None = None, checkpoint: str | None = None
) -> nn.Module:
    """The dense policy that a bundle was exported from: of `source`, or of the weights beside it.

    What a source does not have itself (sizes, data set, tokenizer) is the bundle's.

    Raises:
        CheckpointError: no weights lie beside the bundle; the message names --source.
        ConfigError: see `open_source`.
    """
    if source is None:
        return load_own(_beside_or_source(directory))
    if not source.is_dir():
        shipped = bundles.shipped_directory(str(source))
        if shipped is None:
            known = f"a folder, or a shipped bundle ({', '.join(bundles.shipped())})"
            raise ConfigError(f"expected {known}, for --source, got {source}")
        source = shipped
    if not is_official(source):
        return load_policy(source, None)
    manifest = bundles.load(directory)
    cfg = parse_config(manifest.policy)
    opened = open_source(
        source,
        preset=cfg.name if family_of(cfg).presets.get(cfg.name) == cfg else None,
        checkpoint=checkpoint,
        statistics_key=manifest.action.statistics_key,
        tokenizer=None if manifest.prompt is None else directory / bundles.TOKENIZER,
    )
    return build_policy(opened)


def _beside_or_source(directory: Path) -> Path:
    """`beside`, and for the person who exported a checkpoint's folder what to do about it."""
    try:
        return beside(directory)
    except CheckpointError as error:
        words = "or what it was exported from as --source DIR: a folder, or a shipped bundle"
        raise CheckpointError(f"{error}; {words}") from None


def family_of_source(source: Path) -> Family:
    """Whose policy a source is: by a bundle's manifest, a run's header or a checkpoint's names of
    files; no weight is read.

    Raises what `official_family` raises, and for files that are none of ours.
    """
    if is_official(source):
        return official_family(source)
    if (source / WEIGHTS).exists():
        return family_of(open_own(source / WEIGHTS)[0])
    return family_of(parse_config(bundles.load(source).policy))


def check_planner(source: Path, *, pairs: bool = False) -> None:
    """Refuse a source whose family has no planner, before anything of it is loaded; `pairs`: one
    that chooses pairs of layers alone will do.

    Raises:
        ConfigError: there is none, with the families that have one.
    """
    family = family_of_source(source)
    if family.calibrates or (pairs and family.measure_pairs is not None):
        return
    rows = [find_family(name) for name in FAMILIES]
    planned = [
        row.name for row in rows if row.calibrates or (pairs and row.measure_pairs is not None)
    ]
    raise ConfigError(
        f"{source}: expected a policy of a family with a planner ({', '.join(planned)}), got one of"
        f" family '{family.name}': write its plan yourself (docs/concepts/plan.md), and give it to"
        " `trimvla export --plan`"
    )


def any_key(source: Path) -> str | None:
    """A data set's name, for whoever needs no statistics."""
    path = next((source / name for name in STATISTICS if (source / name).is_file()), None)
    if path is None:
        return None
    from trimvla.runtime.bundle.action_statistics import read_table

    return min(read_table(path, error=ConfigError))


def find_statistics(source: Path) -> Path:
    """The file of statistics by data set. Raises ConfigError where the source has none."""
    for name in STATISTICS:
        if (source / name).exists():
            return source / name
    raise ConfigError(f"{source}: expected {' or '.join(STATISTICS)}, got neither")


def own_weights(source: Path) -> Path:
    """The weights of a run folder, or those beside a bundle.

    CheckpointError where there are none.
    """
    return source / WEIGHTS if (source / WEIGHTS).exists() else beside(source)


def _own_checkpoint(source: Path, statistics_key: str | None, tokenizer: Path | None) -> Checkpoint:
    statistics = read_openvla(find_statistics(source), statistics_key)
    path = own_weights(source)
    cfg, weights = open_own(path)
    found = tokenizer or source / TOKENIZER
    return Checkpoint(
        cfg=cfg,
        weights=weights,
        statistics=statistics.features,
        statistics_key=statistics.key,
        statistics_file=statistics.where,
        tokenizer=found if found.is_file() or tokenizer is not None else None,
        cameras=tuple(getattr(cfg, "cameras", ())),
        directory=source,
    )
