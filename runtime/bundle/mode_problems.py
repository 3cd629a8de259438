"""Whether a manifest's stages fit together: what one stage makes another takes, and what the
runtime makes fits too.

A mode is an order of stages for one call. Knows tensors by name and shape; opens no graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from trimvla.runtime.bundle.manifest_types import GUIDED, PLAIN, Manifest, StageSpec, TensorSpec

ACTIONS = {PLAIN: "actions", GUIDED: "guided_actions"}
"""Mode -> the tensor that is the sampled chunk."""
PROMPT = "input_ids"
INDEX = ("last", "length")
Shape = tuple[int, ...]


def mode_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the modes, the first thing first; later checks rely on earlier ones."""
    if PLAIN not in manifest.modes or set(manifest.modes) - set(ACTIONS):
        yield f"expected '{PLAIN}', and perhaps '{GUIDED}', as 'modes', got {list(manifest.modes)}"
        return
    for mode, names in manifest.modes.items():
        missing = [name for name in names if name not in manifest.stages]
        if missing or not names or len(set(names)) != len(names):
            yield f"expected stages {list(names)} of mode '{mode}', got {list(manifest.stages)}"
            return
    unused = set(manifest.stages).difference(*manifest.modes.values())
    if unused:
        yield f"expected stages that a mode names, got {sorted(unused)}"
    for mode in manifest.modes:
        yield from _one_mode(manifest, mode)


def external_inputs(manifest: Manifest, mode: str) -> dict[str, tuple[str, TensorSpec]]:
    """What none of a mode's stages makes: tensor -> the first stage that takes it, and its spec
    there.
    """
    found: dict[str, tuple[str, TensorSpec]] = {}
    made: set[str] = set()
    for name in manifest.modes[mode]:
        stage = manifest.stages[name]
        for spec in stage.inputs:
            if spec.name not in made:
                found.setdefault(spec.name, (name, spec))
        made |= {spec.name for spec in stage.outputs}
    return found


def runtime_inputs(manifest: Manifest) -> dict[str, tuple[str, Shape | None]]:
    """What the runtime makes for a call: name -> dtype and shape; None for a prompt's, whose
    length varies.
    """
    chunk = (1, manifest.action.horizon, manifest.action.sampled_dim)
    made: dict[str, tuple[str, Shape | None]] = {
        manifest.images.tensor: (
            manifest.images.dtype,
            (len(manifest.images.cameras), *manifest.images.shape, 3),
        ),
        "known": ("float32", chunk),
        "weight": ("float32", (1, manifest.action.horizon, 1)),
    }
    if manifest.prompt is not None:
        made[PROMPT] = ("int64", None)
        made |= dict.fromkeys(INDEX, ("int64", (1,)))
    if manifest.action.noise:
        made["noise"] = ("float32", chunk)
    if manifest.state is not None and manifest.state.into == "tensor":
        made["state"] = ("float32", (1, manifest.state.padded))
    return made


def _one_mode(manifest: Manifest, mode: str) -> Iterator[str]:
    taken = external_inputs(manifest, mode)
    offered = runtime_inputs(manifest)
    always = (manifest.images.tensor, PROMPT, "noise", "state")
    for name in (name for name in always if name in offered):
        if name not in taken:
            yield f"expected a tensor '{name}' among the inputs of mode '{mode}', got {list(taken)}"
    for name, (stage, spec) in taken.items():
        yield from _input_problems(name, stage, spec, offered)
    outputs = {spec.name: (name, spec) for name, spec in _outputs(manifest, mode)}
    wanted = ACTIONS[mode]
    if wanted not in outputs:
        among = f"among the outputs of mode '{mode}'"
        yield f"expected a tensor '{wanted}' {among}, got {list(outputs)}"
    else:
        stage, spec = outputs[wanted]
        yield from _input_problems(wanted, stage, spec, {wanted: offered["known"]})


def _outputs(manifest: Manifest, mode: str) -> Iterator[tuple[str, TensorSpec]]:
    for name in manifest.modes[mode]:
        stage: StageSpec = manifest.stages[name]
        yield from ((name, spec) for spec in stage.outputs)


def _input_problems(
    name: str, stage: str, spec: TensorSpec, offered: dict[str, tuple[str, Shape | None]]
) -> Iterator[str]:
    where = f"'{name}' of stage '{stage}'"
    if name not in offered:
        runtime = f"from the runtime ({list(offered)})"
        yield f"expected {where} from a stage before it or {runtime}, got neither"
        return
    dtype, shape = offered[name]
    if spec.dtype != dtype:
        yield f"expected {dtype} for {where}, got {spec.dtype}"
    if shape is not None and spec.shape != shape:
        yield f"expected {list(shape)} for {where}, got {list(spec.shape)}"
    if shape is None and (len(spec.shape) != 2 or spec.shape[0] != 1):
        yield f"expected [1, prompt] for {where}, got {list(spec.shape)}"
