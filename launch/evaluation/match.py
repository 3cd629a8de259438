"""What is played, by whom: everything that decides the outcomes. Plays nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from trimvla.launch.evaluation.env_args import check_fits, check_look, looks_around
from trimvla.launch.evaluation.options import Args
from trimvla.launch.evaluation.policies import (
    Bundles,
    identity,
    resolve_latency,
)
from trimvla.runtime.chunks.rtc import RtcConfig
from trimvla.sim.actor import EXPERT
from trimvla.sim.evaluation.latency import Latency, split

if TYPE_CHECKING:
    from trimvla.sim.evaluation.rollout import PairedOutcomes, Setting, WorkItem
    from trimvla.sim.evaluation.success import Success


@dataclass(frozen=True)
class Match:
    """What is played, by whom: everything that decides the outcomes."""

    policies: Bundles
    setting: Setting
    conditions: tuple[str, ...]
    seeds: range
    control_hz: float

    @property
    def items(self) -> list[WorkItem]:
        """All conditions of a seed before the next seed."""
        return [(condition, seed) for seed in self.seeds for condition in self.conditions]

    def results(self, rounds: Mapping[WorkItem, PairedOutcomes]) -> dict[str, dict[str, Success]]:
        """Condition -> role -> its success."""
        from trimvla.sim.evaluation.success import success_of

        return {
            condition: {
                role: success_of([rounds[condition, seed][role] for seed in self.seeds])
                for role in self.policies.names
            }
            for condition in self.conditions
        }

    def header(self) -> dict[str, object]:
        """Two runs with the same header have the same outcome on the same seed, however many they
        play.
        """
        setting = self.setting
        latencies = self.setting.latencies
        options = asdict(replace(setting.options, control_hz=None))  # that is the bundles'
        given = {name: value for name, value in options.items() if value is not None}
        return {
            "task": setting.task,
            **({"options": given} if given else {}),
            "official": setting.official,
            "pace": asdict(setting.pace),
            "players": {role: identity(name) for role, name in self.policies.names.items()},
            "backend": self.policies.backend,
            "provider": self.policies.provider,
            "latencies": {
                word: {role: asdict(it) for role, it in roles.items()}
                for word, roles in latencies.items()
            },
        }


def prepare(args: Args) -> Match:
    """What the arguments mean for this environment."""
    from trimvla.sim.episodes import make_task
    from trimvla.sim.evaluation.rollout import Setting, check_episodes, check_expert, choose_seeds
    from trimvla.sim.evaluation.success import WAITS
    from trimvla.sim.evaluation.virtual_time import Pace

    options = args.env_options([args.bundle])
    with closing(make_task(args.task, options)) as task:
        check_fits(task, args.names.values())
        official, seeds = choose_seeds(task.official, args.episodes, args.seed, usual=200)
        check_episodes(task, seeds, official=official)
        named = args.names.values()
        looked = [it for it in named if options.instruction is not None or looks_around(it)]
        if looked:
            check_look(task, looked, seeds[0], official=official)
        expert = args.policy == EXPERT
        hz = task.control_hz
        pace = Pace(
            execute=args.execute or (1 if expert else getattr(task, "execute", 2)),
            votes=args.votes or getattr(task, "votes", 2),
            valid_rows=args.valid_rows,
            mode="latest" if args.chunks == "rtc" else args.chunks,
            rtc=RtcConfig(enabled=args.chunks == "rtc"),
        )
    policies = Bundles(
        args.names, args.backend, args.threads, args.provider, guided=pace.rtc.enabled
    )
    words = tuple(dict.fromkeys(split(args.latency or "")))
    setting = Setting(args.task, official, pace, options=options)
    latencies = known_latencies(args, words) or {
        w: resolve_latency(w, args.names, policies, setting) for w in words
    }
    setting = replace(setting, latencies=latencies)
    check_expert(args.names.values(), setting)
    return Match(policies, setting, words or (WAITS,), seeds, hz)


def known_latencies(args: Args, words: Sequence[str]) -> dict[str, dict[str, Latency]]:
    """Of a run that goes on: what was measured for it once holds for all of it."""
    from trimvla.sim.evaluation.outcomes import read_header

    header = read_header(args.out / "outcomes.jsonl") if args.out is not None else None
    stored = (header or {}).get("latencies", {})
    if set(stored) != set(words) or any(set(roles) != set(args.names) for roles in stored.values()):
        return {}
    return {
        word: {
            role: Latency(it["name"], it["kind"], tuple(it["values"])) for role, it in roles.items()
        }
        for word, roles in stored.items()
    }
