"""The bundle's manifest: what a bundle contains, as typed data, and the one gate through which a
bundle is loaded.

Knows files, hashes, shapes and dtypes. Does not know how a stage runs, nor what a policy's config
means.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path

import msgspec

from trimvla.runtime.bundle import manifest_limits
from trimvla.runtime.bundle.manifest_types import (
    GUIDED,
    GUIDED_SUFFIX,
    MANIFEST,
    PLAIN,
    SCHEMA_VERSION,
    STATISTICS,
    TOKENIZER,
    ActionKind,
    ActionSpec,
    CameraSpec,
    FileSpec,
    FlowSpec,
    ImagesSpec,
    InputsAndOutput,
    Manifest,
    PatchSpec,
    PromptSpec,
    StageSpec,
    StateSpec,
    TensorSpec,
    modes_of,
)
from trimvla.runtime.bundle.mode_problems import mode_problems
from trimvla.runtime.bundle.onnx_references import referenced_files
from trimvla.runtime.bundle.open_bundle import OpenBundle
from trimvla.runtime.bundle.plan import Plan
from trimvla.runtime.bundle.schema_1 import VERSION as OLD_VERSION
from trimvla.runtime.bundle.schema_1 import OldManifest, old_problem, upgrade
from trimvla.runtime.errors import BundleError, ConfigError
from trimvla.runtime.text_files import convert, parse_json

__all__ = [
    "GUIDED",
    "GUIDED_SUFFIX",
    "MANIFEST",
    "PLAIN",
    "SCHEMA_VERSION",
    "STATISTICS",
    "TOKENIZER",
    "ActionKind",
    "ActionSpec",
    "CameraSpec",
    "FileSpec",
    "FlowSpec",
    "ImagesSpec",
    "InputsAndOutput",
    "Manifest",
    "PatchSpec",
    "Plan",
    "PromptSpec",
    "StageSpec",
    "StateSpec",
    "TensorSpec",
    "check",
    "check_name",
    "load",
    "modes_of",
    "opened",
    "parse",
    "resolve",
    "sha256_of",
    "shipped",
    "write",
]

READ_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 16 << 20


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a bundle: BundleError lists the shipped names.

    Example:
        >>> from trimvla.runtime import find_bundle
        >>> find_bundle("tabletop").name
        'tabletop'
    """
    for candidate in (Path(name_or_path), *(root / name_or_path for root in _shipped_roots())):
        if (candidate / MANIFEST).is_file():
            return candidate
    known = ", ".join(shipped()) or "none"
    raise BundleError(
        f"expected a directory with a {MANIFEST} or a shipped bundle ({known}), "
        f"got '{name_or_path}'"
    )


def shipped() -> list[str]:
    """Names of the bundles that come with the package.

    Example:
        >>> from trimvla.runtime import shipped_bundles
        >>> "tabletop-trimmed" in shipped_bundles()
        True
    """
    return sorted(
        path.parent.name for root in _shipped_roots() for path in root.glob(f"*/{MANIFEST}")
    )


def shipped_directory(name: str) -> Path | None:
    """The directory of a shipped bundle; None where none is called so. Whatever stands in the
    working directory.
    """
    known = [root / name for root in _shipped_roots() if (root / name / MANIFEST).is_file()]
    return known[0] if known and name in shipped() else None


def _shipped_roots() -> list[Path]:
    """Folders of the data package; an editable install adds an entry that is no folder."""
    spec = importlib.util.find_spec("trimvla.bundles")
    places = spec.submodule_search_locations if spec else None
    return [Path(place) for place in places or () if Path(place).is_dir()]


def load(directory: Path, verify_hashes: bool = True) -> Manifest:
    """Read and check a bundle: schema version, fields, every file's presence, size and sha256,
    shapes and dtypes.

    Raises BundleError with the first thing that is wrong. `verify_hashes=False` still checks
    presence and sizes. To load what was checked, and nothing else, use `opened`.

    Example:
        >>> from trimvla.runtime import find_bundle, load_manifest
        >>> manifest = load_manifest(find_bundle("tabletop-trimmed"))
        >>> manifest.action.horizon, manifest.action.dim, len(manifest.plan.layers)
        (16, 7, 14)
    """
    with opened(directory, verify_hashes) as (_, manifest):
        return manifest


@contextmanager
def opened(directory: Path, verify_hashes: bool = True) -> Iterator[tuple[OpenBundle, Manifest]]:
    """A bundle, checked as `load` does and held open: what is loaded through it is what was
    checked.

    Raises:
        BundleError: something is wrong, or (at the block's end) was changed after it had been
            checked.
    """
    with closing(OpenBundle(directory)) as bundle:
        path = directory / MANIFEST
        if not path.exists():
            raise BundleError(f"{path}: expected a manifest, got: No such file or directory")
        manifest = parse(bundle.read(MANIFEST, MAX_MANIFEST_BYTES), path)
        for name, spec in manifest.files.items():
            bundle.check_file(name, spec, verify_hashes)
        bundle.check_listing(manifest.files)
        with bundle.named() as place:
            _check_references(place, manifest)
        yield bundle, manifest
        bundle.check_unchanged()


def write(directory: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json as the last file of a bundle and return it with `files` filled from the
    directory.
    """
    complete = msgspec.structs.replace(manifest, files=_describe_files(directory))
    check(complete)
    described = msgspec.to_builtins(complete)
    if complete.patch is None:  # what 0.1 reads too, and the bytes that it wrote
        del described["patch"]
    text = msgspec.json.format(msgspec.json.encode(described), indent=1)
    (directory / MANIFEST).write_bytes(text + b"\n")
    return complete


def parse(raw: bytes, path: Path) -> Manifest:
    """A manifest's text, checked in itself; `path` is for the error's words. Raises BundleError
    and nothing else.
    """
    data = parse_json(raw, path, "a manifest", error=BundleError)
    manifest = _converted(data, path)
    check(manifest)
    return manifest


def _converted(data: object, path: Path) -> Manifest:
    """By the version first: a file of another one may have other fields."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version == SCHEMA_VERSION:
        return convert(data, Manifest, path, error=BundleError)
    if version != OLD_VERSION or isinstance(version, bool):
        versions = f"{OLD_VERSION} or {SCHEMA_VERSION}"
        raise BundleError(f"{path}: expected schema_version {versions}, got {version!r}")
    old = convert(data, OldManifest, path, error=BundleError)
    wrong = old_problem(old)
    if wrong is not None:
        raise BundleError(f"bundle '{old.name[:80]}': {wrong}")
    return upgrade(old)


def check(manifest: Manifest) -> None:
    """Ranges of every field, and facts that stand in two places, which must agree.

    BundleError with the first.
    """
    for problem in chain(manifest_limits.problems(manifest), _problems(manifest)):
        raise BundleError(f"bundle '{manifest.name[:80]}': {problem}")


def check_name(name: str, what: str) -> None:
    """ConfigError where a text may not name a bundle; `what` it is, for the error's words."""
    if not manifest_limits.is_name(name):
        raise ConfigError(f"expected {manifest_limits.NAME_WORDS} for {what}, got {name[:80]!r}")


def _problems(manifest: Manifest) -> Iterator[str]:
    action = manifest.action
    if len(action.kinds) != action.dim:
        yield f"expected {action.dim} entries for 'action.kinds', got {len(action.kinds)}"
    for field in ("names", "units"):
        given = getattr(action, field)
        if given and len(given) != action.dim:
            words = f"{action.dim} entries for 'action.{field}', or none"
            yield f"expected {words}, got {len(given)}"
    if len(set(action.names)) != len(action.names):
        yield f"expected names that differ for 'action.names', got {list(action.names)}"
    if action.sampled_dim < action.dim:
        yield f"expected at least {action.dim} for 'action.padded_dim', got {action.padded_dim}"
    if manifest.prompt is not None:
        yield from _prompt_problems(manifest.prompt)
    yield from _state_problems(manifest)
    names = manifest.images.names
    if len(set(names)) != len(names):
        yield f"expected names that differ for 'images.cameras', got {list(names)}"
    yield from mode_problems(manifest)
    needed = [*manifest.texts, *(stage.file for stage in manifest.stages.values())]
    missing = [name for name in needed if name not in manifest.files]
    yield from (f"file '{name}' is needed and not listed in 'files'" for name in missing)


def _prompt_problems(prompt: PromptSpec) -> Iterator[str]:
    if not prompt.buckets or list(prompt.buckets) != sorted(set(prompt.buckets)):
        yield f"expected rising lengths for 'prompt.buckets', got {list(prompt.buckets)}"
    if "{instruction}" not in prompt.template:
        yield f"expected '{{instruction}}' in 'prompt.template', got {prompt.template!r}"
    if prompt.split_at is not None and prompt.template.count(prompt.split_at) != 1:
        yield f"expected {prompt.split_at!r} once in 'prompt.template', got {prompt.template!r}"


def _state_problems(manifest: Manifest) -> Iterator[str]:
    state = manifest.state
    as_text = state is not None and state.into == "text"
    template = None if manifest.prompt is None else manifest.prompt.template
    if as_text != (template is not None and "{state}" in template):
        words = "'{state}' in 'prompt.template' where 'state.into' is text, and only there"
        yield f"expected {words}, got {template!r}"
    if state is None:
        return
    if state.names and len(state.names) != state.dim:
        yield f"expected {state.dim} entries for 'state.names', or none, got {len(state.names)}"
    if state.units and len(state.units) != state.dim:
        yield f"expected {state.dim} entries for 'state.units', or none, got {len(state.units)}"
    if state.padded < state.dim:
        yield f"expected at least {state.dim} for 'state.padded', got {state.padded}"
    if as_text and state.bins is None:
        yield "expected a number for 'state.bins' where 'state.into' is text, got none"


def _check_references(directory: Path, manifest: Manifest) -> None:
    """Every file that a graph reads must be one that was hashed; absolute names and folders are
    none.
    """
    for name, stage in manifest.stages.items():
        for other in referenced_files(directory / stage.file):
            if other not in manifest.files:
                what = f"stage '{name}' reads its weights from {other[:200]!r}"
                raise BundleError(
                    f"{directory / stage.file}: {what}, expected a file that 'files' lists"
                )


def _describe_files(directory: Path) -> dict[str, FileSpec]:
    paths = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST)
    return {
        p.relative_to(directory).as_posix(): FileSpec(sha256_of(p), p.stat().st_size) for p in paths
    }


def sha256_of(path: Path) -> str:
    """A file's sha256, read in blocks: graphs and engines may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
