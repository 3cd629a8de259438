"""The files that SimplerEnv's episodes load, and whether they are there: without them an episode
runs on, and fails.

Both simulators report a scene or mesh that they cannot read in a line of their log and go on:
objects fall through the table, and a policy that is never asked anything sensible succeeds in
nothing. So everything is looked at before the first episode. Textures are not: a file may name some
that it does not need. Knows names of files (facts of simpler-env/ManiSkill2_real2sim and of
ManiSkill 3, which have the same models) and how whole ones begin; imports no simulator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from trimvla.runtime.errors import ConfigError
from trimvla.sim.simpler.grids import Cell

MODELS = {  # environment, without its version -> the models in it
    "PutSpoonOnTableClothInScene": (
        "bridge_spoon_generated_modified",
        "table_cloth_generated_shorter",
    ),
    "PutCarrotOnPlateInScene": (
        "bridge_carrot_generated_modified",
        "bridge_plate_objaverse_larger",
    ),
    "StackGreenCubeOnYellowCubeBakedTexInScene": ("baked_green_cube_3cm", "baked_yellow_cube_3cm"),
    "PutEggplantInBasketScene": ("eggplant", "dummy_sink_target_plane", "sink"),
    "GraspSingleOpenedCokeCanInScene": ("opened_coke_can",),
    "GraspSingleOpenedCokeCanDistractorInScene": ("opened_coke_can",),
}
AMONG = {  # the coke can's neighbours, by `distractor_config`
    "less": ("opened_pepsi_can", "apple", "sponge", "orange"),
    "more": (
        "opened_7up_can",
        "opened_sprite_can",
        "sponge",
        "orange",
        "opened_fanta_can",
        "bridge_spoon_generated_modified",
    ),
}
PICKED = (  # any of them, by a seed
    "opened_pepsi_can",
    "opened_coke_can",
    "opened_sprite_can",
    "opened_fanta_can",
    "opened_redbull_can",
    "blue_plastic_bottle",
    "apple",
    "orange",
    "sponge",
    "bridge_spoon_generated_modified",
)
TRIPLETS = (  # of the moves: twelve episodes each
    ("blue_plastic_bottle", "opened_pepsi_can", "orange"),
    ("opened_7up_can", "apple", "sponge"),
    ("opened_coke_can", "opened_redbull_can", "apple"),
    ("sponge", "blue_plastic_bottle", "opened_7up_can"),
    ("orange", "opened_pepsi_can", "opened_redbull_can"),
)
# which is moved and near which, by the episode
PAIRS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
# look the same where the others have the real ones' colours baked in
UNBAKED = ("blue_plastic_bottle", "orange")
VISUALS = ("textured.obj", "textured.dae", "textured.glb")  # the first that there is, is loaded
ROBOTS = {
    "google_robot": "googlerobot_description/google_robot_meta_sim_fix_wheel_fix_fingertip",
    "widowx": "widowx_description/wx250s",
}
LFS = b"version https://git-lfs"
MESH = re.compile(r'<mesh[^>]*\bfilename="([^"]+)"')
SHOWN = 3  # of the files that are missing


def models_of(cell: Cell) -> tuple[str, ...]:
    """The models in an official episode of the original package."""
    env = cell.env_id.rpartition("-")[0]
    if env.startswith("MoveNear"):
        return _moved(cell, baked="BakedTex" in env)
    if env == "GraspSingleOpenedCokeCanDistractorInScene":
        return MODELS[env] + AMONG[cell.options.get("distractor_config", "less")]
    if "model_ids" in cell.options:
        return (str(cell.options["model_ids"]),)
    return MODELS.get(env, ())


def _moved(cell: Cell, *, baked: bool) -> tuple[str, ...]:
    number = cell.episode or 0
    triplet = TRIPLETS[number // 12]
    if cell.options.get("no_distractor"):
        triplet = tuple(triplet[i] for i in PAIRS[number % 6])
    return tuple(f"baked_{name}" if baked and name not in UNBAKED else name for name in triplet)


def files_of(cell: Cell, data: Path, package: Path) -> Iterator[Path]:
    """What an official episode of the original package loads.

    Args:
        cell: the episode.
        data: the package's `ASSET_DIR`.
        package: its `PACKAGE_ASSET_DIR`, where the robots are.
    """
    if "dummy" not in cell.scene:
        yield data / "hab2_bench_assets/stages" / f"{cell.scene}.glb"
    if cell.overlay is not None:
        yield data / "real_inpainting" / cell.overlay
    for name in models_of(cell):
        yield from model_files(data / "custom/models" / name)
    if "Drawer" in cell.env_id:
        yield data / "custom" / f"{cell.options.get('station_name', 'mk_station')}.urdf"
    family = "widowx" if cell.robot.startswith("widowx") else "google_robot"
    version = cell.options.get("urdf_version")
    yield package / "descriptions" / f"{ROBOTS[family]}{f'_{version}' if version else ''}.urdf"


def twin_files_of(env: str, assets: Path) -> Iterator[Path]:
    """What every episode of a task of ManiSkill 3 loads, under its `ASSET_DIR`."""
    name = env.rpartition("-")[0]
    sink = env.startswith("PutEggplant")
    dataset = assets / "tasks/bridge_v2_real2sim_dataset"
    yield dataset / "custom" / f"info_bridge_custom{'_baked_tex' * ('BakedTex' in name)}_v0.json"
    yield dataset / "stages" / ("bridge_table_1_v2.glb" if sink else "bridge_table_1_v1.glb")
    yield dataset / "real_inpainting" / ("bridge_sink.png" if sink else "bridge_real_eval_1.png")
    for model in MODELS[name]:
        yield from model_files(dataset / "custom/models" / model)
    yield assets / "robots/widowx/wx250s.urdf"


def model_files(folder: Path) -> Iterator[Path]:
    """A model's mesh for contacts, and the one that is seen; where there is none, the last name
    that is tried.
    """
    yield folder / "collision.obj"
    yield next(
        (folder / name for name in VISUALS if (folder / name).exists()), folder / VISUALS[-1]
    )


def with_meshes(files: Iterable[Path]) -> Iterator[Path]:
    """Every file once, and after a robot's or cabinet's description the meshes that it names beside
    itself.
    """
    for path in dict.fromkeys(files):
        yield path
        if path.suffix == ".urdf" and fault(path) is None:
            names = MESH.findall(path.read_text(encoding="utf-8", errors="replace"))
            yield from (path.parent / name for name in dict.fromkeys(names) if "://" not in name)


def fault(path: Path) -> str | None:
    """What is wrong with a file; None where it can be loaded as far as its beginning and length
    show.
    """
    try:
        with path.open("rb") as file:
            return _broken(path.suffix, file.read(64), file.seek(0, 2))
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _broken(suffix: str, head: bytes, size: int) -> str | None:
    if not head:
        return "is empty"
    if head.startswith(LFS):
        return "is only a Git LFS pointer (git lfs pull)"
    if suffix == ".glb" and (head[:4] != b"glTF" or int.from_bytes(head[8:12], "little") != size):
        return "is no whole glTF file"
    if suffix == ".png" and not head.startswith(b"\x89PNG"):
        return "is no PNG file"
    return None


def check_files(files: Iterable[Path], task: str, advice: str) -> None:
    """Raise ConfigError with the first files that cannot be loaded, and how many there are in
    all.
    """
    wrong = [
        f"{path} {why}"
        for path in dict.fromkeys(with_meshes(files))
        if (why := fault(path)) is not None
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ConfigError(
            f"expected every scene and mesh of {task!r}, got {len(wrong)} that cannot be loaded: "
            f"{'; '.join(wrong[:SHOWN])}{more}. {advice}"
        )
