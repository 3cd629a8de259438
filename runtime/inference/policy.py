"""A bundle that acts: an observation in, an action chunk out.

Loads the manifest with full validation, opens one runner per stage and keeps preprocessing beside
them. The same observation and noise give the same actions, bit for bit on one backend. Knows no
clock, socket or robot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimvla.runtime.backends.chain import Chain, open_chain
from trimvla.runtime.backends.runner import Runner
from trimvla.runtime.bundle import manifest as bundles
from trimvla.runtime.bundle.action_statistics import chosen, chosen_state, read_table
from trimvla.runtime.bundle.manifest import (
    GUIDED,
    PLAIN,
    STATISTICS,
    TOKENIZER,
    Manifest,
    PromptSpec,
)
from trimvla.runtime.bundle.scale import Scale, binarise, normalise, unnormalise
from trimvla.runtime.bundle.tokenizer_file import check_vocabulary, load_tokenizer
from trimvla.runtime.errors import BackendError, BundleError, ConfigError, ObservationError
from trimvla.runtime.inference.policy_like import Known
from trimvla.runtime.preprocess.observation import Inputs, Observation, one_image
from trimvla.runtime.preprocess.prompts import Prompter
from trimvla.runtime.specs import ArraySpec


@dataclass(frozen=True)
class PolicyResult:
    """What one call gave.

    `sample` float32[H, A]: the head's raw output. `normalized` float32[H, A]: clipped, gripper 0 or
    1. `actions` float64[H, A]: in the robot's units, first row due first. `milliseconds`: time by
    part. `kept` int64[K]: raster indices of the visual tokens that the language stage kept, where
    it drops some.

    Example:
        >>> import numpy as np
        >>> from trimvla.runtime import PolicyResult
        >>> rows = np.zeros((16, 7), np.float32)
        >>> result = PolicyResult(rows, rows, rows.astype(float), {"total": 1.0})
        >>> result.kept is None  # as of a dense policy
        True
    """

    sample: np.ndarray
    normalized: np.ndarray
    actions: np.ndarray
    milliseconds: dict[str, float]
    kept: np.ndarray | None = None


class Policy:
    """The stages of a bundle, ready to run.

    Example:
        >>> import numpy as np
        >>> from trimvla.runtime import Policy
        >>> policy = Policy.load("tabletop-trimmed", threads=1)
        >>> image = np.zeros((240, 320, 3), np.uint8)  # RGB, of any size
        >>> result = policy.infer(image, "pick up the red cube", seed=7)
        >>> result.actions.shape  # rows, in the robot's units, and their dimensions
        (16, 7)
        >>> sorted(result.milliseconds)
        ['action', 'language', 'preprocess', 'total', 'vision']
        >>> policy.close()
    """

    def __init__(self, manifest: Manifest, chain: Chain, inputs: Inputs, scale: Scale) -> None:
        """Use `Policy.load`. `scale`: of the actions."""
        self.manifest = manifest
        self.chain = chain
        self._inputs = inputs
        self._scale = scale
        action = manifest.action
        is_gripper = [kind == "gripper" and action.binary_gripper for kind in action.kinds]
        self._gripper = tuple(i for i, gripper in enumerate(is_gripper) if gripper)
        self._chunk = (action.horizon, action.sampled_dim)
        self._noise = ArraySpec("noise", "float32", self._chunk)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        backend: str = "onnxruntime",
        provider: str | None = None,
        threads: int = 0,
        guided: bool = False,
        engines: Path | None = None,
    ) -> Policy:
        """Open a bundle by path or by a shipped bundle's name; the options are those of
        `runner.create`.

        `guided`: also open the optional stage with which a chunk can be guided towards known rows.

        Raises:
            BundleError: it is incomplete, changed, or of another schema version.
            BackendError: the backend cannot run it as asked.
        """
        directory = bundles.resolve(bundle)
        with bundles.opened(directory) as (files, manifest), files.named() as place:
            stages = manifest.opened(guided)
            inputs, scale = _scaling(place, manifest)
            chain = open_chain(
                place,
                manifest,
                backend=backend,
                provider=provider,
                threads=threads,
                engines=engines,
                stages=stages,
            )
            try:
                files.check_unchanged()
            except BundleError:
                chain.close()
                raise
        return cls(manifest, chain, inputs, scale)

    @property
    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        """The range float64[D] of the actions in the data that the policy learned from, low and
        high; infinite where its statistics hold none.
        """
        action = self.manifest.action
        low = np.full(action.dim, -np.inf)
        high = np.full(action.dim, np.inf)
        if action.normalization in ("quantiles", "min_max"):
            scaled = np.array(self._scale.mask or (True,) * action.dim)
            low[scaled] = np.array(self._scale.low)[scaled]
            high[scaled] = np.array(self._scale.high)[scaled]
        low[list(self._gripper)] = 0.0
        high[list(self._gripper)] = 1.0
        return low, high

    @property
    def runners(self) -> Mapping[str, Runner]:
        """Each stage by itself."""
        return self.chain.runners

    def infer(
        self,
        observation: Observation | np.ndarray,
        instruction: str | None = None,
        *,
        noise: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        known: Known | None = None,
    ) -> PolicyResult:
        """One action chunk.

        Args:
            observation: images by camera, instruction and state; or the image of the only camera,
                uint8[h, w, 3] RGB.
            instruction: what to do, with an image alone; not looked at by a policy that reads
                none.
            noise: float32[H, A], standard normal, for a policy that starts from noise; where
                there is none it is drawn from
            seed: one or several integers, such as the policy's and the frame's.
            known: rows that the chunk is guided towards; needs a policy that was loaded `guided`.

        Raises:
            ObservationError: an image's dtype or shape, a camera or state that is missing or does
                not fit.
            PromptError: an empty instruction, or one longer than the largest prompt bucket.
            SpecError: the noise's dtype or shape.
            BackendError: the network's output is not finite.
        """
        watch = Stopwatch()
        with watch.part("preprocess"):
            start = self._inputs.tensors(_observed(observation, instruction))
            noise = self.draw_noise(seed) if noise is None else self._noise.validate(noise)
            if self.manifest.action.noise:
                start["noise"] = noise[None]
        if known is None:
            outputs, took = self.chain.run(start, self.manifest.modes[PLAIN])
            sample = outputs["actions"][0]
        else:
            towards = self._towards(known)
            outputs, took = self.chain.run(start | towards, self.manifest.modes[GUIDED])
            sample = outputs["guided_actions"][0]
        watch.add(took)
        if not np.isfinite(sample).all():  # a clipped NaN in the gripper would read as "open"
            raise BackendError("expected finite numbers for 'actions', got NaN or infinity")
        action = self.manifest.action
        normalized = binarise(sample[:, : action.dim], self._gripper, clip=action.clip)
        actions = unnormalise(normalized, self._scale)
        kept = outputs["kept"][0] if "kept" in outputs else None
        return PolicyResult(sample, normalized, actions, watch.milliseconds(), kept)

    def _towards(self, known: Known) -> dict[str, np.ndarray]:
        """The guided stage's own inputs; a dimension without spread is guided to 0, where training
        left it.

        So are the dimensions that are only padding: training data has zeros there.
        """
        guided = self.manifest.modes.get(GUIDED, ())
        if not guided or not all(name in self.runners for name in guided):
            raise BackendError(f"expected a policy that was loaded '{GUIDED}', to guide it")
        rows = normalise(known.actions, self._scale)
        missing = self._chunk[1] - rows.shape[1]
        padded = np.pad(rows, ((0, 0), (0, missing))) if missing > 0 else rows
        return {"known": padded[None], "weight": known.weights[None, :, None]}

    def draw_noise(self, seed: int | Sequence[int]) -> np.ndarray:
        """float32[H, A], the same for the same seed."""
        return np.random.default_rng(seed).standard_normal(self._chunk, dtype=np.float32)

    def describe(self) -> dict[str, dict[str, str]]:
        """What really runs, by stage."""
        return {name: runner.describe() for name, runner in self.runners.items()}

    def close(self) -> None:
        """Free the device."""
        self.chain.close()


def _observed(observation: Observation | np.ndarray, instruction: str | None) -> Observation:
    if isinstance(observation, Observation):
        if instruction is not None:
            raise ConfigError("expected the instruction in the observation, got another beside it")
        return observation
    if isinstance(observation, Mapping):
        raise ObservationError(
            "expected an Observation(images, instruction, state), or the image of the only camera,"
            f" got {type(observation).__name__}"
        )
    return one_image(observation, instruction)  # pyright: ignore[reportArgumentType] - the prompter checks it


def open_inputs(bundle: str | Path) -> Inputs:
    """What stands before a bundle's network, without the network: whether an observation fits it.

    Raises:
        BundleError: manifest, tokenizer or statistics are missing or do not fit; sizes of files are
            compared, contents are not.
    """
    directory = bundles.resolve(bundle)
    return _scaling(directory, bundles.load(directory, verify_hashes=False))[0]


def _scaling(place: Path, manifest: Manifest) -> tuple[Inputs, Scale]:
    """What stands before the network and behind it, from the bundle's tokenizer and statistics."""
    path = place / STATISTICS
    table = read_table(path)
    key = manifest.action.statistics_key
    scale = chosen(table, key, manifest.action, where=str(path))
    spec = manifest.state
    state = None if spec is None else chosen_state(table, key, spec, where=str(path))
    prompt = manifest.prompt
    prompter = None if prompt is None else _prompter(place / TOKENIZER, prompt)
    return Inputs(manifest, prompter, state), scale


def _prompter(path: Path, prompt: PromptSpec) -> Prompter:
    """The bundle's tokenizer; it must not give ids that the language stage has no embedding for."""
    tokenizer = load_tokenizer(path)
    if prompt.vocabulary is not None:
        first = () if prompt.bos_id is None else (prompt.bos_id,)
        special = (*first, *prompt.suffix_ids, prompt.pad_id)
        check_vocabulary(tokenizer, prompt.vocabulary, special, path, error=BundleError)
    return Prompter(tokenizer, prompt)


class Stopwatch:
    """Times the parts of one call."""

    def __init__(self) -> None:
        self._start = time.monotonic_ns()
        self._parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block under this name."""
        start = time.monotonic_ns()
        yield
        self._parts[name] = (time.monotonic_ns() - start) / 1e6

    def add(self, parts: Mapping[str, float]) -> None:
        """Parts that somebody else timed [ms]."""
        self._parts |= parts

    def milliseconds(self) -> dict[str, float]:
        """Parts, and `total` since the start."""
        return {**self._parts, "total": (time.monotonic_ns() - self._start) / 1e6}
