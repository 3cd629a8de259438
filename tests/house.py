"""The map of the house: which room may import which, and what no room may do.

Also a report of its size.

    python -m tests.house            # figures for people
    python -m tests.house --json     # the same for a program

A room is a folder with modules; a file directly in a root folder belongs to the room called like
that folder. The map is the table `MAY_IMPORT`: a room may import itself and the rooms in its row.
Knows source text alone; imports nothing of what it reads.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOTS = ("runtime", "policies", "export", "sim", "launch")
MOST_FILES = 16  # in one folder, `__init__.py` not counted
VERBS = "launch/verbs"  # one file a verb, however many there are
MOST_VERB_LINES = 160  # options, one call of work, one print: the work lies in a room
MOST_COLUMNS = 100
MOST_ANY_DICTS = 52  # `dict[str, Any]` in signatures: results are types; this only ever falls
NEVER_IN_RUNTIME = (
    "torch",
    "onnx",
    "onnxscript",
    "mujoco",
    "gymnasium",
    "tyro",
    "rich",
    "matplotlib",
    "mani_skill",
)

BASE = ("runtime",)  # errors, specs, clock and other files that know nothing of ours
BUS = (*BASE, "runtime.bus", "runtime.bundle")
CORE = (*BUS, "runtime.chunks", "runtime.backends", "runtime.backends.tensorrt")
INFERENCE = (*CORE, "runtime.preprocess", "runtime.inference", "runtime.cameras")
RUNTIME = (
    *INFERENCE,
    "runtime.control",
    "runtime.drivers",
    "runtime.ros",
    "runtime.servers",
    "runtime.record",
)
SIZES = ("policies.sizes",)
FAMILIES = (
    "policies.act",
    "policies.cogact",
    "policies.dbcogact",
    "policies.smolvla",
    "policies.smolvla.lerobot",
    "policies.pi0",
    "policies.pi05",
)
PARTS = (*SIZES, "policies", "policies.nn", "policies.trimming")  # what a family is made of
POLICIES = (*PARTS, *FAMILIES, "policies.training", "policies.recovery")
EXPORT = (
    "export",
    "export.graphs",
    "export.precision",
    "export.streaming",
    "export.tensorrt",
    "export.reference",
    "export.reference.act",
    "export.reference.pi0",
    "export.reference.dbcogact",
    "export.reference.smolvla",
)
SIM = ("sim", "sim.own", "sim.robots", "sim.tabletop", "sim.simpler", "sim.evaluation")
LAUNCH = (
    "launch",
    "launch.system",
    "launch.system.setup",
    "launch.costing",
    "launch.trimming",
    "launch.inspection",
    "launch.replay",
    "launch.machine",
    "launch.figures",
    "launch.exporting",
    "launch.frames",
    "launch.bench",
    "launch.bench.peers",
    "launch.ablation",
    "launch.bags",
    "launch.tuning",
    "launch.evaluation",
    "launch.faults",
    "launch.datasets",
    "launch.demo",
    "launch.load",
    "launch.motion",
    "launch.training",
    "launch.recovery",
    "launch.pages",
)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "runtime": (),
    "runtime.bundle": BASE,
    "runtime.bus": BUS,
    "runtime.chunks": BUS,
    "runtime.backends": (*BUS, "runtime.backends.tensorrt"),
    "runtime.backends.tensorrt": (*BUS, "runtime.backends"),
    "runtime.cameras": (*BUS, "runtime.inference", "runtime.preprocess"),
    "runtime.preprocess": (*BASE, "runtime.bundle"),
    "runtime.inference": (*CORE, "runtime.preprocess"),
    "runtime.control": CORE,
    "runtime.drivers": (*BUS, "runtime.control"),  # the same gate
    "runtime.ros": (*BUS, "runtime.cameras", "runtime.drivers"),  # stamps as of a camera's driver
    "runtime.servers": INFERENCE,
    "runtime.record": INFERENCE,
    "policies.sizes": (*BASE, "runtime.bundle"),
    "policies.nn": (*BASE, "runtime.bundle", "runtime.inference", "runtime.preprocess", *SIZES),
    **dict.fromkeys(FAMILIES, (*BASE, "runtime.bundle", *PARTS)),
    # the same head and sampler
    "policies.dbcogact": (*BASE, "runtime.bundle", *PARTS, "policies.cogact"),
    "policies.smolvla.lerobot": (*BASE, "runtime.bundle", *PARTS, "policies.smolvla"),
    "policies.pi05": (*BASE, "runtime.bundle", *PARTS, "policies.pi0"),  # the same prefix
    "policies.trimming": (
        *BASE,
        "runtime.bundle",
        *SIZES,
        "policies",
        "policies.nn",
        "policies.cogact",
    ),
    "policies.training": (
        *BASE,
        "runtime.bundle",
        *SIZES,
        "policies.nn",
        "policies.cogact",
        "policies.pi0",
    ),
    "policies.recovery": (
        *BASE,
        "runtime.bundle",
        *PARTS,
        "policies.cogact",
        "policies.training",
    ),
    # the table; families are named in it, not imported
    "policies": (*BASE, "runtime.bundle", *SIZES),
    **dict.fromkeys(EXPORT, (*RUNTIME, *POLICIES, *EXPORT)),
    **dict.fromkeys(SIM, (*RUNTIME, *SIZES, *SIM)),
    **dict.fromkeys(LAUNCH, (*RUNTIME, *POLICIES, *EXPORT, *SIM, *LAUNCH)),
    "launch.verbs": (*RUNTIME, *POLICIES, *EXPORT, *SIM, *LAUNCH),
}


@dataclass(frozen=True)
class Arrow:
    """A file's module imports another's; the line is where it first does so."""

    source: str
    target: str
    line: int


def files(root: Path) -> list[Path]:
    """Every module of the five folders."""
    return sorted(path for name in ROOTS for path in (root / name).rglob("*.py"))


def module_of(path: Path, root: Path) -> str:
    """`runtime/bus/wire.py` -> `runtime.bus.wire`; a package's `__init__` is the package."""
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def room_of(module: str, root: Path) -> str:
    """The folder that a module lies in, dotted."""
    path = root / module.replace(".", "/")
    return module if path.is_dir() else module.rpartition(".")[0]


def statements(path: Path) -> tuple[ast.AST, ...]:
    """Imports, branches, assignments and functions of a file, wherever in it; a text that was
    read before, in whatever file, is not parsed again.
    """
    return _statements(path.read_text())


@functools.lru_cache(maxsize=2048)
def _statements(text: str) -> tuple[ast.AST, ...]:
    kinds = (ast.Import, ast.ImportFrom, ast.If, ast.Assign, ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple(node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))


def arrows(path: Path, root: Path) -> list[Arrow]:
    """What a file imports of ours, wherever in the file; imports for type checkers alone are
    none.
    """
    nodes = statements(path)
    skipped = {id(node) for block in _typing_blocks(nodes) for node in ast.walk(block)}
    source = module_of(path, root)
    found = [
        Arrow(source, target, node.lineno)
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in skipped
        for target in _targets(node, root)
    ]
    first = {arrow.target: arrow for arrow in reversed(found) if arrow.target != source}
    return sorted(first.values(), key=lambda arrow: arrow.line)


def _typing_blocks(nodes: tuple[ast.AST, ...]) -> Iterator[ast.If]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield node


def _targets(node: ast.AST, root: Path) -> Iterator[str]:
    """Modules of ours that one statement imports."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
        yield from (name.removeprefix("trimvla.") for name in names if name.startswith("trimvla."))
    elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimvla."):
        base = (node.module or "").removeprefix("trimvla.")
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            path = root / inner.replace(".", "/")
            is_module = path.with_suffix(".py").is_file() or path.is_dir()
            yield inner if is_module else base


def foreign_imports(path: Path) -> list[tuple[str, int]]:
    """Top-level names of other people's packages that a file imports, and where."""
    found: list[tuple[str, int]] = []
    for node in statements(path):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module.partition(".")[0], node.lineno))
    return found


def breaches(root: Path) -> list[str]:
    """Everything that the map forbids, one line each; empty if the house is in order."""
    found = list(_parallel_assignments(root))
    every = {module_of(path, root): arrows(path, root) for path in files(root)}
    for path in files(root):
        module = module_of(path, root)
        where = path.relative_to(root)
        room = room_of(module, root)
        if room not in MAY_IMPORT:
            found.append(f"{where}: room '{room}' is not on the map")
            continue
        allowed = (*MAY_IMPORT[room], room)
        for arrow in every[module]:
            target = room_of(arrow.target, root)
            if target not in allowed:
                found.append(
                    f"{where}:{arrow.line}: '{room}' may not import '{target}' ({arrow.target})"
                )
            if target == "launch.verbs" and room == "launch.verbs":
                found.append(f"{where}:{arrow.line}: a verb imports a verb ({arrow.target})")
        if module.startswith("runtime"):
            for name, line in foreign_imports(path):
                if name in NEVER_IN_RUNTIME:
                    found.append(f"{where}:{line}: runtime may never import '{name}'")
    found += _long_verbs(root)
    found += [f"circle: {' -> '.join(circle)}" for circle in circles(every)]
    found += [
        f"{folder}: {count} files, at most {MOST_FILES}" for folder, count in crowded(root).items()
    ]
    return found


def _long_verbs(root: Path) -> Iterator[str]:
    """Verbs that do more than wire."""
    for path in sorted((root / VERBS).glob("*.py")):
        count = len(path.read_text().splitlines())
        if count > MOST_VERB_LINES:
            yield f"{path.relative_to(root)}: {count} lines, a verb has at most {MOST_VERB_LINES}"


def any_dicts(root: Path) -> list[str]:
    """Every function with a `dict[str, Any]` in its signature, one line each."""
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.name}"
        for path in files(root)
        for node in statements(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for _ in range(_any_dicts(node))
    ]


def circles(every: dict[str, list[Arrow]]) -> list[list[str]]:
    """Files that import each other in a round, each circle once."""
    graph = {module: sorted({arrow.target for arrow in found}) for module, found in every.items()}
    state: dict[str, int] = {}
    trail: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        state[module] = 1
        trail.append(module)
        for target in graph.get(module, []):
            if state.get(target, 0) == 0:
                visit(target)
            elif state[target] == 1:
                found.append([*trail[trail.index(target) :], target])
        trail.pop()
        state[module] = 2

    for module in sorted(graph):
        if state.get(module, 0) == 0:
            visit(module)
    return found


def crowded(root: Path) -> dict[str, int]:
    """Folders with too many files."""
    counts = Counter(
        str(path.parent.relative_to(root)) for path in files(root) if path.name != "__init__.py"
    )
    return {
        folder: count for folder, count in counts.items() if count > MOST_FILES and folder != VERBS
    }


@dataclass
class Report:
    """How large the house is, and how it is written."""

    files: int = 0
    lines: int = 0
    folders: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Files and lines by folder."""
    arrows_between_rooms: int = 0
    arrows_inside_rooms: int = 0
    longest_functions: list[tuple[str, int]] = field(default_factory=list)
    """The ten longest, with their lines."""
    any_dicts_in_signatures: int = 0
    """`dict[str, Any]` as a parameter's or a result's type."""
    parallel_assignments_per_1000_lines: float = 0.0
    """`a, b = x, y`; a swap and the unpacking of a call are none."""
    lines_over_100_columns: int = 0


def report(root: Path) -> Report:
    """Count."""
    found = Report()
    functions: list[tuple[str, int]] = []
    parallel = 0
    for path in files(root):
        text = path.read_text()
        lines = text.splitlines()
        folder = str(path.parent.relative_to(root))
        files_there, lines_there = found.folders.get(folder, (0, 0))
        found.folders[folder] = (files_there + 1, lines_there + len(lines))
        found.lines += len(lines)
        found.files += 1
        found.lines_over_100_columns += sum(len(line) > MOST_COLUMNS for line in lines)
        for node in statements(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append((f"{path.relative_to(root)}:{node.name}", size))
                found.any_dicts_in_signatures += _any_dicts(node)
            parallel += _is_parallel(node)
        for arrow in arrows(path, root):
            inside = room_of(arrow.source, root) == room_of(arrow.target, root)
            found.arrows_inside_rooms += inside
            found.arrows_between_rooms += not inside
    found.longest_functions = sorted(functions, key=lambda each: -each[1])[:10]
    found.parallel_assignments_per_1000_lines = round(parallel * 1000 / found.lines, 1)
    return found


def _any_dicts(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
    hints = [argument.annotation for argument in every] + [node.returns]
    texts = [ast.unparse(hint) for hint in hints if hint is not None]
    return sum("dict[str, Any]" in text for text in texts)


def _parallel_assignments(root: Path) -> Iterator[str]:
    """Where a line holds several statements in the dress of one, tests included."""
    for path in [*files(root), *sorted((root / "tests").glob("*.py"))]:
        for node in statements(path):
            if isinstance(node, ast.Assign) and _is_parallel(node):
                where = f"{path.relative_to(root)}:{node.lineno}"
                yield f"{where}: one statement a line, but for a swap: {ast.unparse(node)[:60]}"


def _is_parallel(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    target = node.targets[0]
    if not isinstance(target, ast.Tuple) or len(target.elts) != len(node.value.elts):
        return False
    names = {ast.unparse(name) for name in target.elts}
    return not names <= {ast.unparse(value) for value in node.value.elts}


def main() -> None:
    """Print the report."""
    root = Path(__file__).resolve().parent.parent
    found = report(root)
    if "--json" in sys.argv[1:]:
        print(json.dumps(asdict(found)))
        return
    for name, value in asdict(found).items():
        if name == "folders":
            for folder, (count, lines) in value.items():
                print(f"{folder:28s} {count:3d} files {lines:6d} lines")
        elif name == "longest_functions":
            for function, size in value:
                print(f"{size:4d} lines  {function}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
