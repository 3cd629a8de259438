"""Calibration: images and prompts of one policy, and what its decoder does to them.

One pass over the data gathers all that the criteria need: how much each layer turns the residual
stream, and the mean squares that go into each MLP. Knows no criterion and decides nothing.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from trimvla.policies.cogact.model import CogAct
from trimvla.policies.cogact.tokenizer import prompt_ids
from trimvla.policies.nn.llama import Decoder, DecoderLayer
from trimvla.policies.sizes.config import PolicyConfig
from trimvla.policies.trimming.outputs import Outputs
from trimvla.policies.trimming.trimmed_language import TrimmedDecoder
from trimvla.runtime.errors import ConfigError
from trimvla.runtime.text_files import pointer_in

MAX_ARCHIVE_BYTES = 4 << 30  # some 28,000 images of 224 x 224

Sums = tuple[Tensor, Tensor, Tensor]
"""float64[layers], float64[layers, width], float64[layers, mlp_hidden]: see `Statistics`."""


@dataclass(frozen=True)
class Calibration:
    """n samples of one policy."""

    policy: str
    """Fingerprint of the policy's config."""
    images: np.ndarray
    """uint8[n, S, S, 3], RGB, already resized."""
    input_ids: np.ndarray
    """int64[n, L], BOS first, padded on the right."""
    last: np.ndarray
    """int64[n], index of EOS in the ids."""

    def digest(self) -> str:
        """sha256 of everything, in hexadecimal."""
        digest = hashlib.sha256(self.policy.encode())
        for array in (self.images, self.input_ids, self.last):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write an archive without pickle."""
        np.savez_compressed(
            path, policy=self.policy, images=self.images, input_ids=self.input_ids, last=self.last
        )


def load_calibration(path: Path, cfg: PolicyConfig) -> Calibration:
    """Read what `Calibration.save` wrote.

    Raises:
        ConfigError: no such archive, or the data of another policy.
    """
    pointer = pointer_in(path)
    if pointer is not None:
        raise ConfigError(f"{path}: expected calibration data, got {pointer}")
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            data = Calibration(
                str(arrays["policy"]), arrays["images"], arrays["input_ids"], arrays["last"]
            )
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        TypeError,
    ) as error:
        raise ConfigError(f"{path}: expected calibration data, got: {error}") from error
    try:
        check_calibration(data, cfg)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return data


def _check_size(path: Path) -> None:
    """ValueError where an archive unfolds to more than any calibration takes: a few kilobytes can
    be gigabytes.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_ARCHIVE_BYTES:
        raise ValueError(f"an archive of {size} bytes, expected at most {MAX_ARCHIVE_BYTES}")


def check_calibration(data: Calibration, cfg: PolicyConfig) -> None:
    """ConfigError where the data is empty or belongs to another policy."""
    if data.policy != cfg.fingerprint:
        raise ConfigError(
            f"expected calibration data of policy '{cfg.name}' ({cfg.fingerprint}), got that of"
            f" {data.policy}"
        )
    n = data.last.size
    side = cfg.image_size
    shaped = data.last.ndim == 1 and data.input_ids.ndim == 2 and data.input_ids.shape[0] == n
    if not n or not shaped or data.images.shape != (n, side, side, 3):
        shapes = [list(array.shape) for array in (data.images, data.input_ids, data.last)]
        raise ConfigError(
            f"expected calibration data [n, {side}, {side}, 3], [n, L], [n], got {shapes}"
        )
    kinds = [str(array.dtype) for array in (data.images, data.input_ids, data.last)]
    if (
        data.images.dtype != np.uint8
        or data.input_ids.dtype != np.int64
        or data.last.dtype != np.int64
    ):
        raise ConfigError(f"expected calibration data of uint8, int64 and int64, got {kinds}")
    length = data.input_ids.shape[1]
    if data.last.min() < 1 or data.last.max() >= length:
        raise ConfigError(
            f"expected 1 to {length - 1} for 'last', got {data.last.min()} to {data.last.max()}"
        )
    lowest = data.input_ids.min()
    highest = data.input_ids.max()
    if lowest < 0 or highest >= cfg.language.vocab:
        raise ConfigError(
            f"expected ids from 0 to {cfg.language.vocab - 1}, got {lowest} to {highest}"
        )


def calibration_from_shards(
    shards: Sequence[Path],
    cfg: PolicyConfig,
    tokenizer: Callable[[], Tokenizer],
    frames: int,
    seed: int,
) -> Calibration:
    """Frames drawn from shards of demonstrations (see `dataset`), each with the instruction that
    was being pursued.

    Args:
        shards: the files.
        cfg: of the policy.
        tokenizer: opens the policy's tokenizer.
        frames: how many; all, where there are fewer.
        seed: of the draw.

    Raises:
        ConfigError: there are no shards, or no frames are wanted.
    """
    if not shards or frames < 1:
        raise ConfigError(
            f"expected shards of demonstrations and at least 1 frame, got {len(shards)} and"
            f" {frames}"
        )
    loaded = [np.load(path) for path in shards]
    texts = np.concatenate([shard["texts"][:, 0] for shard in loaded])
    rows = np.sort(np.random.default_rng(seed).permutation(len(texts))[:frames])
    images = np.concatenate([shard["images"] for shard in loaded])[rows]
    return calibration_of(cfg, images, [str(text) for text in texts[rows]], tokenizer())


def calibration_of(
    cfg: PolicyConfig, images: np.ndarray, instructions: Sequence[str], tokenizer: Tokenizer
) -> Calibration:
    """Images uint8[n, S, S, 3] that are resized already and their n instructions, as one policy's
    samples.

    Example:
        >>> import numpy as np
        >>> from tokenizers import Tokenizer
        >>> from trimvla.policies import calibration_of, find_preset
        >>> from trimvla.runtime import find_bundle
        >>> tokenizer = Tokenizer.from_file(str(find_bundle("tabletop") / "tokenizer.json"))
        >>> images = np.zeros((1, 128, 128, 3), np.uint8)
        >>> instructions = ["pick up the red cube"]
        >>> frames = calibration_of(find_preset("tabletop"), images, instructions, tokenizer)
        >>> frames.images.shape, frames.input_ids.dtype
        ((1, 128, 128, 3), dtype('int64'))
    """
    ids = [prompt_ids(tokenizer, cfg.prompt, instruction) for instruction in instructions]
    last = np.array([len(row) - 1 for row in ids])
    padded = np.full((len(ids), int(last.max()) + 1), cfg.prompt.pad_id)
    for place, row in zip(padded, ids, strict=True):
        place[: len(row)] = row
    return Calibration(cfg.fingerprint, images, padded, last)


@dataclass(frozen=True)
class Statistics:
    """What the dense decoder does on calibration data, layer by layer."""

    similarity: Tensor
    """float64[layers]: cosine between a layer's input and output; mean over positions, then over
    samples.
    """
    inputs: Tensor
    """float64[layers, width]: mean square of the MLP's input over all positions."""
    channels: Tensor
    """float64[layers, mlp_hidden]: mean square of what goes into the MLP's down projection."""
    samples: int
    outputs: Outputs | None = None
    """What the policy gives without some layers, for criteria that ask; None where nothing can
    be run.
    """
    worth: Tensor | None = None
    """float64[layers, mlp_hidden]: score of every channel, where the family works it out itself."""


def samples_of(data: Calibration) -> list[dict[str, Tensor]]:
    """The stages' input tensors of each sample by name, ids without padding."""
    return [
        {
            "image": torch.from_numpy(image)[None],
            "input_ids": torch.from_numpy(ids[: int(last) + 1])[None],
            "last": torch.tensor([int(last)]),
        }
        for image, ids, last in zip(data.images, data.input_ids, data.last, strict=True)
    ]


@torch.no_grad()
def sequences(policy: CogAct, data: Calibration) -> Iterator[Tensor]:
    """The decoder's input of each sample without padding, float[1, P + last + 1, D]."""
    for image, ids, last in zip(data.images, data.input_ids, data.last, strict=True):
        visual = policy.vision(torch.from_numpy(image)[None])
        yield policy.language.embed(visual, torch.from_numpy(ids[: int(last) + 1])[None])


@torch.no_grad()
def kept_tokens(
    policy: CogAct, data: Calibration, frames: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What a policy whose plan drops tokens keeps of some frames, evenly spread over the data.

    Args:
        policy: under such a plan (`trimmed.trim`).
        data: calibration samples of that policy.
        frames: how many at most.

    Returns:
        (image uint8[S, S, 3], its kept visual tokens int64[K] in raster order, its prompt's ids
        int64[l]) of each.
    """
    decoder = policy.language
    assert isinstance(decoder, TrimmedDecoder)
    for row in np.unique(np.linspace(0, len(data.last) - 1, frames).round().astype(int)):
        image = data.images[row]
        ids = data.input_ids[row, : int(data.last[row]) + 1]
        visual = policy.vision(torch.from_numpy(image)[None])
        last = torch.tensor([len(ids) - 1])
        _, kept = decoder.cognition_and_kept(visual, torch.from_numpy(ids)[None], last)
        yield image, kept[0].numpy(), ids


@torch.no_grad()
def measure(decoder: Decoder, inputs: Iterable[Tensor]) -> Statistics:
    """Run the dense decoder over sequences float[1, n, D] and gather its statistics.

    Raises:
        ConfigError: there is no sequence.
    """
    total: Sums | None = None
    positions = samples = 0
    for x in inputs:
        found = layer_sums(decoder, x)
        total = (
            found
            if total is None
            else (total[0] + found[0], total[1] + found[1], total[2] + found[2])
        )
        positions = positions + x.shape[1]
        samples = samples + 1
    if total is None:
        raise ConfigError("expected at least one calibration sample, got none")
    similarity, into_mlp, into_down = total
    return Statistics(similarity / samples, into_mlp / positions, into_down / positions, samples)


def layer_sums(decoder: Decoder, x: Tensor) -> Sums:
    """Of one sequence float[1, n, D]: mean cosine of each layer; sums of squares into each MLP and
    into its down.
    """
    cos, sin, mask = decoder.context(x, past=0)
    cosines = []
    into_mlp = []
    into_down = []
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        middle = x + layer.self_attn(layer.input_layernorm(x), cos, sin, mask)
        normed = layer.post_attention_layernorm(middle)
        channels = layer.mlp.channels(normed)
        after = middle + layer.mlp.down_proj(channels)
        cosines.append(F.cosine_similarity(x.double(), after.double(), dim=-1).mean())
        into_mlp.append(normed.double().square().sum(dim=(0, 1)))
        into_down.append(channels.double().square().sum(dim=(0, 1)))
        x = after
    return torch.stack(cosines), torch.stack(into_mlp), torch.stack(into_down)
