"""The small flow policy of the tabletop: pi0's shape, two cameras and the robot's state.

`tabletop-flow-front` is its control: the same network looking through the front camera alone.
Knows sizes; allocates nothing and imports no torch.
"""

from __future__ import annotations

import msgspec

from trimvla.policies.pi0.config import (
    ExpertConfig,
    GemmaConfig,
    Pi0Config,
    Pi0PromptConfig,
    buckets_up_to,
    siglip,
)

HORIZON = 16
ACTION_DIM = 7
STATE_DIM = 5
LONGEST_PROMPT = 16

TABLETOP_FLOW = Pi0Config(
    family="pi0",
    name="tabletop-flow",
    vision=siglip(image_size=128, patch_size=16, width=160, depth=5, heads=5, mlp=480),
    language=GemmaConfig(
        width=128, layers=8, heads=4, kv_heads=2, head_dim=32, mlp_hidden=384, vocab=512
    ),
    expert=ExpertConfig(width=96, mlp_hidden=288),
    prompt=Pi0PromptConfig(
        template="{instruction}", bos_id=1, pad_id=0, buckets=buckets_up_to(LONGEST_PROMPT)
    ),
    cameras=("front", "wrist"),
    horizon=HORIZON,
    action_dim=ACTION_DIM,
    padded_action_dim=ACTION_DIM,
    state_dim=STATE_DIM,
    padded_state_dim=STATE_DIM,
)
FRONT_ALONE = msgspec.structs.replace(TABLETOP_FLOW, name="tabletop-flow-front", cameras=("front",))
FLOW_PRESETS: dict[str, Pi0Config] = {cfg.name: cfg for cfg in (TABLETOP_FLOW, FRONT_ALONE)}
