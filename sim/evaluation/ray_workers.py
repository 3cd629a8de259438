"""The same work on the machines of a Ray cluster: items in, results as they come.

Needs `ray`; knows no episode.

Every machine needs trimvla, the same bundles under the same paths, and the environment. Items are
dealt out like cards, one hand for every process, so the results are those of `workers.spread`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from trimvla.runtime.errors import ConfigError, TrimvlaError
from trimvla.sim.evaluation.workers import WorkerError

# of this process's environment
HANDED_ON = ("MUJOCO_GL", "OMP_WAIT_POLICY", "MS_ASSET_DIR", "VK_ICD_FILENAMES")


def over_cluster(address: str) -> Callable[..., Generator[Any, None, None]]:
    """`workers.spread` on the cluster at this address (`auto`: the one that this machine belongs
    to).

    Raises:
        ConfigError: `ray` is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("expected `ray` for --ray: pip install 'trimvla[ray]'") from None

    def spread(
        work: Callable[..., Any], items: Sequence[Any], workers: int
    ) -> Generator[Any, None, None]:
        """As `workers.spread`; 0 workers are as many as the cluster has cores."""
        _connect(ray, address)
        try:
            count = workers or int(ray.cluster_resources().get("CPU", 1))
            yield from _collect(ray, work, [items[i::count] for i in range(min(count, len(items)))])
        finally:
            ray.shutdown()

    return spread


def _connect(ray: Any, address: str) -> None:  # noqa: ANN401 - ray has no types worth the name
    try:
        environ = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        ray.init(
            address=address,
            runtime_env={"env_vars": environ},
            log_to_driver=False,
            logging_level="warning",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"expected a Ray cluster at {address!r}, got none: {error}") from None


def _collect(ray: Any, work: Callable[..., Any], hands: Sequence[Sequence[Any]]) -> Iterator[Any]:  # noqa: ANN401
    """One task a hand; each streams its results."""
    task = ray.remote(num_cpus=1, max_retries=0)(_serve).options(num_returns="streaming")
    waiting = [task.remote(work, hand) for hand in hands]
    while waiting:
        ready, _ = ray.wait(waiting, num_returns=1)
        stream = ready[0]
        try:
            yield ray.get(next(stream))
        except StopIteration:
            waiting.remove(stream)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause if isinstance(cause, TrimvlaError) else WorkerError(str(error).strip())
            ) from None


def _serve(work: Callable[..., Any], hand: Sequence[Any]) -> Iterator[Any]:
    """On a machine of the cluster."""
    with closing(work(hand)) as results:
        yield from results
