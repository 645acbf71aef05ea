"""Kimi K2, top to bottom: the network as the paper draws it, and nothing else.

What differs from the textbook transformer:
- MLA: keys and values come from one small latent per token, and only that latent is cached.
  Prefill expands it to heads; decode absorbs the expansion into the query. Same numbers.
- Only a slice of each head is rotated (RoPE), and its key is shared by all heads.
- Layer 0 is dense; every later layer routes each token to 8 of 384 small experts and one shared.
- The router scores with a sigmoid. A bias decides who is chosen, but does not weigh.

Letters: b batch · t token · s source token · h head · n nope · r rope · c latent · v value ·
e expert · k slot (chosen expert) · d hidden.

The model owns no weights: each part asks the store for tensors named as in the checkpoint. At every
named site (`spec/sites.py`) a value goes through the tap, which may watch it or change it. Cache,
rotary arithmetic, INT4, loading and costs live elsewhere; `single.py` has the same network for one
token on a CPU, proven equal to this one.

Source: DeepSeek-V2/V3 technical reports (MLA, DeepSeekMoE), Kimi K2 technical report.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from k2lab.errors import InputError
from k2lab.model.cache import LatentCache
from k2lab.spec.config import LATENT_NORM_EPS, K2Config
from k2lab.spec.sites import Tap, names
from k2lab.tensors.linear import linear, linear_by_head, swiglu
from k2lab.tensors.rope import Rotary, rotate, softmax_scale
from k2lab.weights.store import WeightStore

Form = Literal["expanded", "absorbed", "fused"]
"""How attention reads the latent: expanded to keys and values, or absorbed into the query; or
expanded and computed by one kernel that never writes the scores out, so that nobody can tap them.
"""

FORMS = get_args(Form)


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward needs besides its tokens."""

    rotation: Tensor  # e^{ipω}, complex [token, 1, rope / 2]: the same for all heads
    # −inf where a token may not look, float32 [token, source]; None: one token, which may look at
    # all, or a text that is fused from its start, where the kernel keeps the order.
    mask: Tensor | None
    cache: LatentCache | None
    tap: Tap
    form: Form


class RMSNorm:
    """x / √(mean(x²) + ε) · weight, with the mean taken in float32."""

    def __init__(self, size: int, eps: float) -> None:
        # Numbers are held as tensors throughout this file: on a CPU, turning a Python number into
        # one costs more than the arithmetic on a single token (measured).
        self.scale, self.floor = torch.tensor(size**-0.5), torch.tensor(eps**0.5)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """x normalised over its last axis."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return weight * (x / torch.hypot(length * self.scale, self.floor)).type_as(x)


class MLA:
    """Multi-head latent attention."""

    def __init__(self, config: K2Config, layer: int, store: WeightStore) -> None:
        self.config, self.layer, self.store = config, layer, store
        self.site = names(f"layers.{layer}.self_attn")
        self.nope, self.rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.rank = config.kv_lora_rank
        self.scale = torch.tensor(softmax_scale(config))
        self.q_a_layernorm = RMSNorm(config.q_lora_rank or 1, LATENT_NORM_EPS)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """u = W^O [o_1 … o_h] for x [b, t, d]."""
        config, tap, site = self.config, step.tap, self.site
        with self.store.dense(self.layer, "self_attn") as w:
            # Queries: through their own latent, or directly where the checkpoint has none.
            if config.q_lora_rank is None:
                q = linear(x, w.q_proj)
            else:
                c_q = self.q_a_layernorm(linear(x, w.q_a_proj), w.q_a_layernorm)
                q = linear(c_q, w.q_b_proj)
            q = q.view(*x.shape[:2], config.num_attention_heads, -1)  # [b, t, h, n + r]
            q_nope, q_rope = q.split_with_sizes((self.nope, self.rope), -1)

            # Keys and values: one latent and one rotary key per token, for all heads.
            compressed = linear(x, w.kv_a_proj_with_mqa)  # W^{DKV} ‖ W^{KR}
            latent, k_rope = compressed.split_with_sizes((self.rank, self.rope), -1)
            latent = self.kv_a_layernorm(latent, w.kv_a_layernorm)
            # The shared key is turned with the queries, as one head more.
            turned = rotate(torch.cat([q_rope, k_rope.unsqueeze(2)], 2), step.rotation)
            q_rope, k_rope = turned.split_with_sizes((config.num_attention_heads, 1), 2)

            q_nope = tap(site.q_nope, q_nope)
            q_rope = tap(site.q_rope, q_rope)
            latent = tap(site.latent, latent)  # [b, t, c]
            k_rope = tap(site.k_rope, k_rope.squeeze(2))  # [b, t, r]
            memory = torch.cat([latent, k_rope], -1)
            if step.cache is not None:
                memory = step.cache.append(self.layer, memory)
            attend = self._absorbed if step.form == "absorbed" else self._expanded
            attend = self._fused if step.form == "fused" else attend
            heads = tap(site.heads, attend(q_nope, q_rope, memory, w.kv_b_proj, step))
            return tap(site.output, linear(heads.flatten(2), w.o_proj))

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, kv_b: Tensor, step: Step
    ) -> Tensor:
        """o = softmax(q k) v with each head's keys and values written out: [b, t, h, v]."""
        query, key, value = self._written_out(q_nope, q_rope, memory, kv_b)
        products = torch.einsum("bthk,bshk->bhts", query, key)
        return torch.einsum("bhts,bshv->bthv", self._attend(products, step), value)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, kv_b: Tensor, step: Step
    ) -> Tensor:
        """The same, with (q W^UK) c in place of q (W^UK c): no head leaves the latent.

        Plain products instead of einsum: one token at a time, the call itself is the cost.
        """
        w_uk, w_uv = self._up(kv_b)
        batch, tokens, heads, _ = q_nope.shape
        q_latent = torch.bmm(q_nope.flatten(0, 1).transpose(0, 1), w_uk)  # [h, b·t, c]
        query = torch.cat([q_latent.transpose(0, 1), q_rope.flatten(0, 1)], -1)  # [b·t, h, c + r]
        products = torch.bmm(query.view(batch, -1, memory.shape[-1]), memory.mT)  # [b, t·h, s]
        products = products.view(batch, tokens, heads, -1).transpose(1, 2)  # [b, h, t, s]
        attention = self._attend(products, step).transpose(1, 2).flatten(1, 2)  # [b, t·h, s]
        mixed = torch.bmm(attention, memory[..., : self.rank])  # [b, t·h, c]
        mixed = mixed.view(batch * tokens, -1, self.rank).transpose(0, 1)
        return linear_by_head(mixed, w_uv).transpose(0, 1).view(batch, tokens, heads, -1)

    def _fused(
        self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, kv_b: Tensor, step: Step
    ) -> Tensor:
        """The same in one kernel, for text that is only read: no site of the scores fires."""
        written = self._written_out(q_nope, q_rope, memory, kv_b)
        query, key, value = (each.transpose(1, 2) for each in written)
        # The kernel wants values as wide as keys; what is added is zero and is cut off again.
        value = F.pad(value, (0, key.shape[-1] - value.shape[-1]))
        causal = step.mask is None and query.shape[2] == key.shape[2]
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=step.mask, is_causal=causal, scale=self.scale.item()
        )
        return mixed.transpose(1, 2)[..., : self.config.v_head_dim]

    def _written_out(
        self, q_nope: Tensor, q_rope: Tensor, memory: Tensor, kv_b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys of each head [b, t or s, h, n + r], and its values [b, s, h, v]."""
        latent, k_rope = memory[..., : self.rank], memory[..., self.rank :]
        w_uk, w_uv = self._up(kv_b)
        k_nope = torch.einsum("bsc,hnc->bshn", latent, w_uk)
        k_rope = k_rope.unsqueeze(2).expand(*k_nope.shape[:3], -1)  # one key for all heads
        key = torch.cat([k_nope, k_rope], -1)
        return torch.cat([q_nope, q_rope], -1), key, torch.einsum("bsc,hvc->bshv", latent, w_uv)

    def _up(self, kv_b: Tensor) -> tuple[Tensor, Tensor]:
        """W^{UK} [h, n, c] and W^{UV} [h, v, c]."""
        by_head = kv_b.view(self.config.num_attention_heads, -1, self.rank)
        w_uk, w_uv = by_head.split_with_sizes((self.nope, self.config.v_head_dim), 1)
        return w_uk, w_uv

    def _attend(self, products: Tensor, step: Step) -> Tensor:
        """softmax(q·k · scale) over the sources a token may see, in float32: [b, h, t, s]."""
        scores = products.float() * self.scale
        if step.mask is not None:
            scores.add_(step.mask)
        scores = step.tap(self.site.scores, scores)
        return step.tap(self.site.weights, scores.softmax(-1).type_as(products))


class Router:
    """Who computes a token: the top k of the biased scores, inside the best groups."""

    def __init__(self, config: K2Config, layer: int, store: WeightStore) -> None:
        self.config, self.layer, self.store = config, layer, store
        self.site = names(f"layers.{layer}.mlp.router")
        self.factor = torch.tensor(config.routed_scaling_factor)
        self.tiny = torch.tensor(1e-20)  # the reference's guard against 0 / 0

    def __call__(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Chosen experts and their mixing weights, [b, t, k] each; all in float32."""
        config, tap, site = self.config, step.tap, self.site
        with self.store.dense(self.layer, "mlp.gate") as w:
            logits = tap(site.logits, F.linear(x.float(), w.weight.float()))
            scores = tap(site.scores, logits.sigmoid())  # s_{i,t}
            choice = scores + w.e_score_correction_bias  # the bias chooses, it does not weigh
        if config.n_group > 1:
            choice = self._within_groups(choice)
        choice = tap(site.choice, choice)
        experts = tap(site.experts, choice.topk(config.num_experts_per_tok, -1).indices)
        weights = scores.gather(-1, experts)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + self.tiny)
        return experts, tap(site.weights, weights * self.factor)

    def _within_groups(self, choice: Tensor) -> Tensor:
        """Choice scores, −inf outside the `topk_group` best groups (sum of a group's best two)."""
        grouped = choice.unflatten(-1, (self.config.n_group, -1))  # [b, t, group, e / group]
        strength = grouped.topk(2, -1).values.sum(-1)
        best = strength.topk(self.config.topk_group, -1).indices
        closed = torch.ones_like(strength, dtype=torch.bool).scatter(-1, best, value=False)
        return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(-2)


class MoE:
    """y = Σ_k g_k · E_k(x) + E_shared(x)."""

    def __init__(self, config: K2Config, layer: int, store: WeightStore) -> None:
        self.layer, self.store = layer, store
        self.site = names(f"layers.{layer}.mlp")
        self.router = Router(config, layer, store)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Mixture of the chosen experts plus the shared one, for x [b, t, d]."""
        experts, weights = self.router(x, step)
        batch = self.store.experts(self.layer, experts.flatten(0, 1))
        with self.store.dense(self.layer, "mlp.shared_experts") as w:
            shared = swiglu(x, w.gate_proj, w.up_proj, w.down_proj)
        shared = step.tap(self.site.shared_experts_output, shared)
        rows = batch.rows(x.flatten(0, 1)).view(*experts.shape, -1)  # [b, t, k, d]
        rows = step.tap(self.site.experts_rows, rows)
        routed = torch.matmul(weights.unsqueeze(2), rows.float()).squeeze(2)  # Σ_k g_k · E_k
        return step.tap(self.site.output, routed.type_as(x) + shared)


class Dense:
    """The plain SwiGLU of the first layer."""

    def __init__(self, layer: int, store: WeightStore) -> None:
        self.layer, self.store = layer, store
        self.site = names(f"layers.{layer}.mlp")

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """SwiGLU(x) for x [b, t, d]."""
        with self.store.dense(self.layer, "mlp") as w:
            return step.tap(self.site.output, swiglu(x, w.gate_proj, w.up_proj, w.down_proj))


class Block:
    """h = x + MLA(norm x);  y = h + FFN(norm h)."""

    def __init__(self, config: K2Config, layer: int, store: WeightStore) -> None:
        self.layer, self.store = layer, store
        self.site = names(f"layers.{layer}")
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, layer, store)
        self.mlp = MoE(config, layer, store) if config.is_moe(layer) else Dense(layer, store)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The residual stream after this layer, [b, t, d]."""
        with self.store.dense(self.layer, "norms") as w:
            x = step.tap(self.site.input, x)
            x = x + self.self_attn(self.norm(x, w.input_layernorm), step)
            x = step.tap(self.site.middle, x)
            return x + self.mlp(self.norm(x, w.post_attention_layernorm), step)


class K2:
    """The whole network: ids in, logits out."""

    def __init__(self, config: K2Config, store: WeightStore) -> None:
        self.config, self.store = config, store
        self.rotary = Rotary(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = [Block(config, layer, store) for layer in range(config.num_hidden_layers)]
        # A source costs t (2 c + r) products per head absorbed, and c (n + v) + t (n + r + v)
        # expanded: below this many new tokens t, reading latents is the cheaper one.
        heads, rank = config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank
        self.few = rank * heads / max(1, 2 * rank - heads)

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        """Logits of the next token after each, [b, t, vocab], for ids [b, t]."""
        return self.logits(self.hidden(ids, step), step)

    def hidden(self, ids: Tensor, step: Step) -> Tensor:
        """The residual stream after the last layer, [b, t, d]."""
        with self.store.dense(None, "embed_tokens") as w:
            x = step.tap("embed", F.embedding(ids, w.embed_tokens))
        for block in self.layers:
            x = block(x, step)
        if step.cache is not None:
            step.cache.advance(ids.shape[1])
        return x

    def logits(self, x: Tensor, step: Step) -> Tensor:
        """W^{head} norm(x), [b, t, vocab]."""
        with self.store.dense(None, "norm") as w:
            x = step.tap("norm", self.norm(x, w.norm))
        with self.store.dense(None, "lm_head") as w:
            return step.tap("logits", linear(x, w.lm_head))

    def step(
        self, tokens: int, *, cache: LatentCache | None, tap: Tap, form: Form | None = None
    ) -> Step:
        """Positions, rotation and causal mask for the next `tokens` tokens after the cache.

        InputError for a form that is none, ContextError where the cache has no room for them.
        """
        start = 0
        if cache is not None:
            cache.room_for(tokens)
            start = cache.length
        stop, device = start + tokens, self.device
        mask = None
        if tokens > 1 and not (form == "fused" and start == 0):
            positions = torch.arange(start, stop, device=device)
            hidden = torch.arange(stop, device=device)[None, :] > positions[:, None]
            mask = torch.zeros(hidden.shape, device=device).masked_fill(hidden, float("-inf"))
        few = cache is not None and tokens < self.few
        if form is None:
            form = "absorbed" if few else "expanded"
        elif form not in FORMS:
            raise InputError(
                f"form is {form!r:.80}.",
                expected=f"one of {', '.join(FORMS)}.",
                mend="Leave it out to have the cheapest.",
            )
        return Step(self.rotary(start, stop, device), mask, cache, tap, form)

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out."""
        return self.store.device
