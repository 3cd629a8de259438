"""One program, `trimvla`, with verbs.

Knows their table, exit codes and how an error looks; not what a verb does.

A verb's module is imported when it is called, so that `trimvla --help` costs nothing and a robot
without torch can `run`. Exit status: 0 only on success, 1 for a failure, 2 for a wrong command
line, 130 for Ctrl-C, 141 where nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from trimvla.launch.extras import install, missing_module
from trimvla.launch.outputs import check_outputs
from trimvla.launch.result import Result, VerbResult, as_json, error_of
from trimvla.runtime.errors import TrimvlaError
from trimvla.runtime.printable import printable, printable_lines

NO_READER = 141  # as shells report a program that wrote where nobody reads


@dataclass(frozen=True)
class Verb:
    """One row of the table: `module` has `Args` and `run`; `extra` is the optional install that it
    needs.
    """

    name: str
    module: str
    extra: str
    summary: str
    renders: bool = False  # needs an OpenGL that works without a display

    def load(self) -> ModuleType:
        """Its module, imported."""
        return importlib.import_module(f"trimvla.launch.verbs.{self.module}")

    def args(self) -> type:
        """The type of its arguments."""
        if self.name not in OPTIONS:
            return self.load().Args
        module, name = OPTIONS[self.name]
        return getattr(importlib.import_module(f"trimvla.launch.{module}"), name)


# Where the arguments stand of verbs whose modules import torch: `--help` and a wrong command line
# do not wait for it.
OPTIONS = {
    "ablate": ("ablation.options", "AblateArgs"),
    "export": ("exporting.options", "ExportArgs"),
    "gpu-bench": ("bench.gpu_options", "GpuBenchArgs"),
    "recover": ("recovery.options", "Args"),
    "trim": ("trimming.options", "Args"),
    "tune": ("tuning.options", "TuneArgs"),
}
VERBS = (
    Verb("doctor", "doctor", "", "what this machine can do, and what to install for the rest"),
    Verb("demo", "demo", "sim", "the shipped policy drives the simulator, camera to command", True),
    Verb("run", "run", "", "start the processes of a TOML file and keep them running"),
    Verb("operator", "operate", "", "arm, disarm, reset or stop a robot; ends well if it counted"),
    Verb("serve", "serve", "", "a bundle for the clients of GR00T, openpi and vla-eval"),
    Verb("keys", "keys", "", "keys for hosts that talk over TCP: make a pair, list who is trusted"),
    Verb("camera", "camera", "", "publish a camera, a video file or a test image"),
    Verb("eval", "evaluate", "sim", "episodes in simulation: success rate and its interval", True),
    Verb("report", "report", "train", "the page on success and latency, from kept results"),
    Verb("train", "train", "train", "behaviour cloning of the shipped policy; resumes", True),
    Verb("trim", "trim", "export", "calibration frames to a plan: what is kept of a policy", True),
    Verb("recover", "recover", "export", "train a trimmed policy against the dense one", True),
    Verb("export", "export", "export", "checkpoint to bundle: ONNX stages, manifest, parity", True),
    Verb("build", "build", "", "bundle to TensorRT engines for this device, cached"),
    Verb("verify", "verify", "export", "a bundle against torch, or torch against a reference"),
    Verb("cost", "cost", "export", "parameters, operations and bytes of a policy under a plan"),
    Verb(
        "gpu-bench", "gpu_bench", "", "latency of a full-size policy on a GPU, with random weights"
    ),
    Verb("bench", "bench", "", "latency of a bundle, layer by layer"),
    Verb("ablate", "ablate", "export", "every part of a plan: success, time and cost", True),
    Verb("tune", "tune", "export", "bundles as fast as this device needs, with proof", True),
    Verb("record", "record", "record", "write what travels in a running system to an MCAP file"),
    Verb("replay", "replay", "record", "a recording's policy calls once more: the same actions?"),
    Verb("inspect", "inspect_call", "record", "one policy call: kept tokens, layers, steps, times"),
    Verb("faults", "faults", "record", "break one thing after the other; was every command safe?"),
    Verb("load", "load", "", "a whole robot's load on this machine: late, lost, growing?"),
    Verb("process", "process", "", "one process of a system (what `run` and `demo` start)", True),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    show_whatever_comes()
    if foreign := [word for word in args if not is_text(word)]:
        wrong = ", ".join(map(printable, foreign))
        return fail(
            f"expected text in UTF-8 on the command line, got {wrong}", "--json" in args, status=2
        )
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(version())
        return 0
    verb = next((verb for verb in VERBS if verb.name == args[0]), None)
    if verb is None:
        return fail(unknown_verb(args[0]), "--json" in args, status=2)
    return run_verb(verb, args[1:])


def show_whatever_comes() -> None:
    """Characters that a terminal's encoding lacks are shown escaped instead of ending the
    program.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_text(word: str) -> bool:
    """Whether a word of the command line was UTF-8: bytes that are none arrive as lone
    surrogates.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def run_verb(verb: Verb, argv: list[str]) -> int:
    """Parse, run and report one verb. An expected error is one line; anything else keeps its
    traceback."""
    in_json = "--json" in argv
    try:
        if verb.renders:
            from trimvla.sim.rendering import choose_renderer

            choose_renderer()
        args = parse(verb, argv)
        check_outputs(args.outputs())
        result = verb.load().run(args)
    except TrimvlaError as error:
        return fail(str(error), in_json)
    except KeyboardInterrupt:
        return fail("interrupted", in_json, status=130)
    except SystemExit as stop:
        return usage_exit(stop, in_json)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            raise
        if isinstance(error, ImportError) and (module := missing_module(error)):
            return fail(
                f"`trimvla {verb.name}` needs {module}: {install(module, verb.extra)}", in_json
            )
        return unexpected(error, in_json)
    if error := error_of(result):
        print(f"error: {printable_lines(error)}", file=sys.stderr, flush=True)
    if in_json:
        print_json(result)
    return 0 if result.ok else 1


def parse(verb: Verb, argv: list[str]) -> Any:  # noqa: ANN401 - the type is the verb's own Args
    """Typed arguments of a verb; tyro prints what is wrong and exits with 2."""
    import tyro

    from trimvla.launch.options import collect_overrides, configure_logging

    kind = verb.args()
    words = collect_overrides(argv) if hasattr(kind, "set") else argv
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            args = tyro.cli(kind, prog=f"trimvla {verb.name}", args=words, config=config)
    finally:
        print(printable_lines(complaints.getvalue(), indent=""), end="", file=sys.stderr)
    configure_logging(log_format=args.log_format)
    return args


def unexpected(error: Exception, in_json: bool) -> int:
    """Report an error that nobody foresaw, with its traceback."""
    print(printable_lines("".join(traceback.format_exception(error)), indent=""), file=sys.stderr)
    return fail(f"{type(error).__name__}: {error}", in_json)


def reader_left() -> bool:
    """Whether nobody reads stdout any more, as after `trimvla eval --help | head`."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # no file of the system's
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def print_json(result: Result) -> None:
    """The one JSON object, on one line, after everything else."""
    sys.stdout.flush()
    print(as_json(result), flush=True)


def fail(message: str, in_json: bool, status: int = 1) -> int:
    """Report what went wrong: one line on stderr and, with --json, one object on stdout."""
    print(f"error: {printable_lines(message)}", file=sys.stderr, flush=True)
    if in_json:
        print_json(VerbResult(ok=False, error=message))
    return status


def usage_exit(stop: SystemExit, in_json: bool) -> int:
    """tyro exits with 0 after help and with 2 after a wrong command line.

    A program that passed --json gets JSON.
    """
    status = stop.code if isinstance(stop.code, int) else 1
    if status and in_json:
        print_json(VerbResult(ok=False, error="wrong command line; see stderr"))
    return status


def unknown_verb(name: str) -> str:
    """What was typed, and what was perhaps meant."""
    close = difflib.get_close_matches(name, [verb.name for verb in VERBS], n=1)
    hint = f"; did you mean '{close[0]}'?" if close else "; `trimvla --help` lists the verbs"
    return f"unknown verb '{name}'{hint}"


def overview() -> str:
    """The text of `trimvla --help`, from the table."""
    rows = "\n".join(f"  {verb.name:<11}{verb.summary}" for verb in VERBS)
    return (
        "usage: trimvla VERB [options]\n\n"
        "Trim, export and run vision-language-action policies on a robot's own computer.\n\n"
        f"{rows}\n\n"
        "Every verb takes --help, and --json for one JSON object as the last line of stdout."
    )


def version() -> str:
    """The installed version."""
    from importlib.metadata import version as installed

    return f"trimvla {installed('trimvla')}"


def program() -> NoReturn:
    """What the command `trimvla` runs."""
    from trimvla.runtime.foreign_thread import end_process

    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = NO_READER
    end_process(status)


if __name__ == "__main__":
    program()
