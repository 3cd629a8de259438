"""The decoder under a plan: kept layers at kept widths, and visual tokens dropped on the way.

Removing a whole layer moves no position, for the model is prefill only. Kept tokens stay in raster
order at their original positions. Relevance comes from extra score rows beside the attention, which
stays one kernel. Knows no criterion: which layers, channels and tokens are kept is decided
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimvla.policies.nn.attention import shared_heads, softmax
from trimvla.policies.nn.llama import (
    Decoder,
    DecoderLayer,
    Past,
    SwiGlu,
    causal_mask,
    joined,
    rotary,
)
from trimvla.policies.trimming.tokens import Seen, relevance, select
from trimvla.runtime.bundle.plan import Plan, TokenPlan, unmask

Context = tuple[Tensor, Tensor, Tensor]
"""cos, sin and causal mask, from `Decoder.context`."""


class TrimmedDecoder(Decoder):
    """A decoder of the kept layers; what is kept whole is shared with the dense one.

    Nothing is folded in yet: other layers give other keys and values.
    """

    def __init__(
        self,
        dense: Decoder,
        plan: Plan,
        seen: tuple[int, ...] | None = None,
        patches: int | None = None,
    ) -> None:
        """Build it from the dense decoder and a plan that fits.

        Args:
            dense: the dense decoder.
            plan: what is kept.
            seen: raster indices of the visual tokens that come in, where some have left before.
            patches: how many there are in the whole image, where some have left before.
        """
        nn.Module.__init__(self)
        self.head_dim = dense.head_dim
        self.theta = dense.theta
        self.lead = dense.lead
        self.cameras = dense.cameras
        self.register_buffer("folded_keys", None, persistent=False)
        self.register_buffer("folded_values", None, persistent=False)
        self.embed_tokens = dense.embed_tokens
        self.norm = dense.norm
        self.tokens = plan.tokens
        self.seen = seen
        self.patches = patches
        kept = range(len(dense.layers)) if plan.layers is None else plan.layers
        layers = [dense.layers[index] for index in kept]
        if plan.channels is not None:
            layers = [
                narrow(layer, unmask(text))
                for layer, text in zip(layers, plan.channels, strict=True)
            ]
        self.layers = nn.ModuleList(layers)

    def cognition(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> Tensor:
        """See `Decoder.cognition`."""
        if self.tokens is None:
            return super().cognition(visual, input_ids, last)
        return self.cognition_and_kept(visual, input_ids, last)[0]

    def cognition_and_kept(
        self, visual: Tensor, input_ids: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The cognition feature float[b, D], and the raster indices int64[b, K] of the visual
        tokens it rests on.
        """
        plan = self.token_plan
        x, seen = self.observe(visual, input_ids, last)
        kept = select(plan, seen)
        return self.finish(x, kept, input_ids.shape[1], last), self.in_image(kept)

    def in_image(self, kept: Tensor) -> Tensor:
        """Places int64[b, K] among the tokens that come in -> their raster indices."""
        return kept if self.seen is None else torch.tensor(self.seen, device=kept.device)[kept]

    def among_seen(self, kept: Tensor) -> Tensor:
        """Raster indices int64[b, K] -> their places among the tokens that come in."""
        if self.seen is None:
            return kept
        return torch.searchsorted(torch.tensor(self.seen, device=kept.device), kept.contiguous())

    def context(self, x: Tensor, past: int | None = None) -> Context:
        """See `Decoder.context`; tokens that come in keep the positions of the whole image's."""
        if self.seen is None or self.patches is None:
            return super().context(x, past)
        past = self.folded if past is None else past
        before = torch.arange(self.lead, device=x.device)
        seen = torch.tensor(self.seen, device=x.device) + self.lead
        text = torch.arange(self.lead + len(self.seen), x.shape[1], device=x.device)
        positions = torch.cat([before, seen, text + (self.patches - len(self.seen))]) + past
        cos, sin = rotary(positions, self.head_dim, self.theta)
        return cos, sin, causal_mask(x.shape[1], x.device, past)

    @property
    def token_plan(self) -> TokenPlan:
        """The plan for tokens, which must be there."""
        assert self.tokens is not None
        return self.tokens

    def observe(self, visual: Tensor, input_ids: Tensor, last: Tensor) -> tuple[Tensor, Seen]:
        """Run the layers that see every token; float[b, P + L, D] and what a selector may look
        at.
        """
        x = self.embed(visual, input_ids)
        context = self.context(x)
        for index, layer in enumerate(self.layers[: self.token_plan.after - 1]):
            x = layer(x, *context, past=self.past(index))
        return self.look(x, context, visual, last)

    def look(
        self, x: Tensor, context: Context, visual: Tensor, last: Tensor
    ) -> tuple[Tensor, Seen]:
        """Run the last layer that sees every token, on float[b, P + L, D] from the one before it;
        as `observe`.
        """
        plan = self.token_plan
        patches = visual.shape[1]
        rows = plan.scored
        lead = self.lead
        end = plan.after - 1
        if rows is None:
            x = self.layers[end](x, *context, past=self.past(end))
            scores = None
        else:
            x, probabilities = self.score(x, context, lead + patches)
            scores = relevance(
                probabilities, rows, last, patches, lead=lead, start=self.folded + lead
            )
        features = x[:, lead : lead + patches] if plan.embedding == "hidden" else visual
        return x, Seen(features, scores, self.cameras, self.seen, self.patches)

    def score(self, x: Tensor, context: Context, start: int) -> tuple[Tensor, Tensor]:
        """Run the last layer that sees every token; its output, and the wanted attention of the
        rows from `start`.
        """
        plan = self.token_plan
        previous = as_layer(self.layers[plan.after - 1])
        following = as_layer(self.layers[plan.after])
        past = self.past(plan.after - 1)
        if plan.source == "previous":
            return run_scored(previous, x, context, start, past)
        x = previous(x, *context, past=past)
        normed = following.input_layernorm(x)
        (cos, sin, mask) = context
        attend = following.self_attn
        q = attend.queries(normed[:, start:], cos[start:], sin[start:])
        k = attend.keys(normed, cos, sin)
        if (folded := self.past(plan.after)) is not None:  # its values are not needed for scores
            k = torch.cat([folded[0].expand(len(k), -1, -1, -1), k], dim=2)
        return x, row_probabilities(q, k, mask[start:])

    def finish(self, x: Tensor, kept: Tensor, length: int, last: Tensor) -> Tensor:
        """Run the other layers on the kept visual tokens and the text, at their original
        positions.
        """
        cos, sin, _ = self.context(x)
        sequence = kept_positions(kept, x.shape[1], length, self.lead)
        x = x.gather(1, sequence[..., None].expand(-1, -1, x.shape[-1]))
        cos = cos[sequence][:, None]
        sin = sin[sequence][:, None]
        mask = causal_mask(x.shape[1], x.device, self.folded)
        end = len(self.layers) - 1
        for index in range(self.token_plan.after, end):
            x = self.layers[index](x, cos, sin, mask, past=self.past(index))
        x = self.layers[end](x, cos, sin, mask, row=last + kept.shape[1], past=self.past(end))
        return self.norm(x)[:, 0]


def kept_positions(kept: Tensor, total: int, length: int, lead: int = 1) -> Tensor:
    """Places in a sequence of `total` of the ids before the image, the kept visual tokens and the
    other ids.

    Args:
        kept: int64[b, K], raster indices.
        total: P + L.
        length: L.
        lead: ids before the image.

    Returns:
        int64[b, K + L], ascending.
    """
    before = torch.arange(lead, device=kept.device).expand(len(kept), -1)
    text = torch.arange(total - length + lead, total, device=kept.device).expand(len(kept), -1)
    return torch.cat([before, kept + lead, text], dim=1)


def run_scored(
    layer: DecoderLayer, x: Tensor, context: Context, start: int, past: Past | None = None
) -> tuple[Tensor, Tensor]:
    """Run a layer and give, beside its output, its attention from the rows from `start` on."""
    attend = layer.self_attn
    normed = layer.input_layernorm(x)
    (cos, sin, mask) = context
    q = attend.queries(normed, cos, sin)
    k, v = joined(past, attend.keys(normed, cos, sin), attend.values(normed))
    mixed = attend.mix(q, k, v, mask)
    return layer.add_mlp(x + mixed), row_probabilities(q[:, :, start:], k, mask[start:])


def row_probabilities(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Attention of some rows float[b, heads, r, d] over all keys float[b, kv, n, d]: float[b,
    heads, r, n].
    """
    scores = (q @ shared_heads(k, q.shape[1]).transpose(-2, -1)) * q.shape[-1] ** -0.5
    return softmax(scores.masked_fill(~mask, -torch.inf))


def as_layer(module: nn.Module) -> DecoderLayer:
    """The same module, for the type checker."""
    assert isinstance(module, DecoderLayer)
    return module


def narrow(module: nn.Module, channels: Sequence[int]) -> DecoderLayer:
    """The layer with only these channels of its MLP: smaller matrices, the rest shared."""
    layer = as_layer(module)
    made = DecoderLayer.__new__(DecoderLayer)
    nn.Module.__init__(made)
    made.self_attn = layer.self_attn
    made.mlp = narrow_mlp(layer.mlp, channels)
    made.input_layernorm = layer.input_layernorm
    made.post_attention_layernorm = layer.post_attention_layernorm
    return made


def narrow_mlp(mlp: SwiGlu, channels: Sequence[int]) -> SwiGlu:
    """The same channels of gate, up and down."""
    kept = torch.tensor(channels, device=mlp.gate_proj.weight.device)
    with torch.device("meta"):
        made = SwiGlu(mlp.gate_proj.in_features, len(channels))
    for ours, theirs, axis in (
        (made.gate_proj, mlp.gate_proj, 0),
        (made.up_proj, mlp.up_proj, 0),
        (made.down_proj, mlp.down_proj, 1),
    ):
        ours.weight = nn.Parameter(theirs.weight.detach().index_select(axis, kept))
    return made
