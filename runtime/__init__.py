"""What a robot needs to run a bundle: numpy, ONNX Runtime and ZeroMQ. Never torch.

Policies that act, the topics between processes, and recordings of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimvla.runtime import quiet
from trimvla.runtime.front_door import opened

if TYPE_CHECKING:
    from trimvla.runtime.backends.chain import open_chain
    from trimvla.runtime.bundle.description import Description, Dimension, Quantity
    from trimvla.runtime.bundle.manifest import load as load_manifest
    from trimvla.runtime.bundle.manifest import resolve as find_bundle
    from trimvla.runtime.bundle.manifest import shipped as shipped_bundles
    from trimvla.runtime.bundle.plan import Plan, TokenPlan, load_plan, save_plan
    from trimvla.runtime.bus.messages import Command, JointState
    from trimvla.runtime.bus.sockets import Publisher, Subscriber
    from trimvla.runtime.bus.topics import topic
    from trimvla.runtime.clock import monotonic_ns
    from trimvla.runtime.drivers.contract import check_driver
    from trimvla.runtime.drivers.driver import Driver, DriverConfig
    from trimvla.runtime.drivers.loop import drive
    from trimvla.runtime.errors import TrimvlaError
    from trimvla.runtime.inference.policy import Policy, PolicyResult
    from trimvla.runtime.record.recording import Recording

__all__ = [
    "Command",
    "Description",
    "Dimension",
    "Driver",
    "DriverConfig",
    "JointState",
    "Plan",
    "Policy",
    "PolicyResult",
    "Publisher",
    "Quantity",
    "Recording",
    "Subscriber",
    "TokenPlan",
    "TrimvlaError",
    "check_driver",
    "drive",
    "find_bundle",
    "load_manifest",
    "load_plan",
    "monotonic_ns",
    "open_chain",
    "save_plan",
    "shipped_bundles",
    "topic",
]

PUBLIC = {
    "Policy": "inference.policy:Policy",
    "PolicyResult": "inference.policy:PolicyResult",
    "find_bundle": "bundle.manifest:resolve",
    "shipped_bundles": "bundle.manifest:shipped",
    "load_manifest": "bundle.manifest:load",
    "open_chain": "backends.chain:open_chain",
    "Plan": "bundle.plan:Plan",
    "TokenPlan": "bundle.plan:TokenPlan",
    "load_plan": "bundle.plan:load_plan",
    "save_plan": "bundle.plan:save_plan",
    "Recording": "record.recording:Recording",
    "Publisher": "bus.sockets:Publisher",
    "Subscriber": "bus.sockets:Subscriber",
    "topic": "bus.topics:topic",
    "JointState": "bus.messages:JointState",
    "Command": "bus.messages:Command",
    "Driver": "drivers.driver:Driver",
    "DriverConfig": "drivers.driver:DriverConfig",
    "drive": "drivers.loop:drive",
    "Description": "bundle.description:Description",
    "Dimension": "bundle.description:Dimension",
    "Quantity": "bundle.description:Quantity",
    "check_driver": "drivers.contract:check_driver",
    "monotonic_ns": "clock:monotonic_ns",
    "TrimvlaError": "errors:TrimvlaError",
}
"""Name -> module and attribute: what users import from here. Everything else is internal."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = opened(__name__, PUBLIC)

quiet.switch_off()  # before any library is imported that would report to its maker
