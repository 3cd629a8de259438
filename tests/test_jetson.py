"""What is made for a Jetson: its state is read, its units start real processes, its script says
what it would do.
"""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from trimvla.launch import cli
from trimvla.launch.machine.jetson_state import read_state
from trimvla.launch.system.setup.observers import with_metrics, with_recorder
from trimvla.launch.system.setup.process_table import PROCESSES
from trimvla.launch.system.setup.programs import programs
from trimvla.launch.system.setup.sections import complete, read_system
from trimvla.runtime.backends.tensorrt import engine_folders

JETSON = Path(__file__).parents[1] / "launch" / "jetson"
UNITS = JETSON / "systemd"
ORIN = {
    "etc/nv_tegra_release": (
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
    ),
    # as on Orin Nano
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "var/lib/nvpmodel/status": "pmode:0000 fmode:fanNull",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2201600",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "612000000",
    "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1300500000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48500",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "95000",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",  # off
}


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    for name, text in ORIN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


def test_a_board_tells_what_it_is_and_what_slows_it_down(orin: Path) -> None:
    state = read_state(orin)
    assert (state.release, state.power_mode, state.hottest) == (
        "L4T 36.4.3",
        "15W",
        ("gpu-thermal", 95.0),
    )
    assert [(clock.name, clock.now_mhz, clock.most_mhz) for clock in state.clocks] == [
        ("CPU", 729.6, 2201.6),
        ("GPU", 306.0, 1300.5),
    ]
    assert [line.split("   ")[0] for line in state.advice()] == [
        "nvpmodel -m 2",
        "jetson_clocks",
        "cool the board",
    ]
    assert "CPU may reach 1510 of 2202 MHz, GPU may reach 612 of 1300 MHz" in state.advice()[0]
    assert "CPU 730 to 1510 MHz, GPU 306 to 612 MHz" in state.advice()[1]


def test_a_fast_and_cool_board_needs_no_advice(orin: Path) -> None:
    for name, text in {
        "var/lib/nvpmodel/status": "pmode:0002",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "2201600",
        "sys/class/devfreq/17000000.gpu/min_freq": "1300500000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2201600",
        "sys/class/devfreq/17000000.gpu/max_freq": "1300500000",
        "sys/class/thermal/thermal_zone1/temp": "61000",
    }.items():
        (orin / name).write_text(text)
    assert read_state(orin).advice() == []


def test_another_machine_is_no_jetson(tmp_path: Path) -> None:
    state = read_state(tmp_path)
    assert not state.is_jetson
    assert (state.clocks, state.hottest, state.advice()) == ((), None, [])


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parsed.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parsed.read_string(path.read_text())
    return parsed


def test_the_units_start_processes_that_exist() -> None:
    wanted = unit(UNITS / "trimvla.target")["Unit"]["Wants"].split()
    names = [name.removeprefix("trimvla@").removesuffix(".service") for name in wanted]
    assert names == list(read_system(JETSON / "robot.toml"))
    assert set(names) <= set(PROCESSES)
    _, verb, *words = shlex.split(unit(UNITS / "trimvla@.service")["Service"]["ExecStart"])
    assert (
        next(each for each in cli.VERBS if each.name == verb).load().__name__
        == "trimvla.launch.verbs.process"
    )
    assert words[1::2] == ["--system", "--run-dir"]


def test_the_script_builds_where_everything_looks() -> None:
    text = (JETSON / "install.sh").read_text()
    assert f"--out {engine_folders.SYSTEM}\n" in text
    assert f'install -d -o "$user" {engine_folders.SYSTEM}\n' in text
    assert "engines" not in read_system(JETSON / "robot.toml")["policy"]


def test_whoever_watches_sees_the_camera(tmp_path: Path) -> None:
    """Its section is called `camera`; it reports as the camera that it is."""
    system = read_system(JETSON / "robot.toml")
    recorder = with_recorder(system, tmp_path / "a.mcap")["recorder"]
    assert (recorder["cameras"], recorder["processes"]) == (
        ["front"],
        ["camera-front", "policy", "control"],
    )
    assert with_metrics(system, 0)["metrics"]["processes"] == ["camera-front", "policy", "control"]
    own = complete("metrics", {**system, "metrics": {"port": 0}})
    assert own == {"port": 0, "processes": ["camera-front", "policy", "control"]}
    assert programs(system, tmp_path)[0].report == "camera-front"


def test_control_comes_first_and_stays_down_after_a_fault() -> None:
    service = {
        name: unit(UNITS / f"trimvla@{name}.service.d" / "priority.conf")["Service"]
        for name in ("control", "policy", "camera")
    }
    assert service["control"]["CPUSchedulingPolicy"] == "fifo"
    assert service["control"]["Restart"] == "no"
    assert int(service["control"]["OOMScoreAdjust"]) < int(service["policy"]["OOMScoreAdjust"])
    asked = read_system(JETSON / "robot.toml")["control"]["realtime"]["priority"]
    assert asked <= int(service["control"]["LimitRTPRIO"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    service = tmp_path / "trimvla@.service"
    service.write_text(service.read_text().replace("/opt/trimvla/bin/trimvla", "/bin/true"))
    units = [str(tmp_path / f"trimvla@{name}.service") for name in ("control", "policy", "camera")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "trimvla" in line]
    assert complaints == []


def test_the_script_says_what_it_would_do() -> None:
    done = subprocess.run(
        [JETSON / "install.sh", "--dry-run"], capture_output=True, text=True, check=True
    )
    files = [
        str(path.relative_to(JETSON.parents[1])) for path in UNITS.rglob("*.*") if path.is_file()
    ]
    assert all(name in done.stdout for name in files)
    assert "--system-site-packages" in done.stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--wrong",), "expected --dry-run, --prefix or --user, got --wrong"),
        (("--dry-run", "--user", "nobody-at-all"), "got nobody-at-all"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(words: tuple[str, ...], error: str) -> None:
    done = subprocess.run(
        [JETSON / "install.sh", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert error in done.stderr
