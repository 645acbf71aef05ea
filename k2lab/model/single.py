"""One token on a CPU: the network of `k2.py` in NumPy, where calls cost more than arithmetic.

A token of K2-nano is seven hundred products and sums of a few hundred numbers each. One call of
torch takes longer than most of them, and one of NumPy a fraction of it. `k2.py` explains each
formula and stays the reference: both name the same sites in the same order, and a test holds each
value here against the one there.

There is no batch here and one token, so neither has an axis; a tap is shown a value with both.
What it is not: a path for several tokens, other dtypes or devices, or large networks, whose
arithmetic is the cost. Letters as in `k2.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from k2lab.model.built import Picture
from k2lab.model.cache import LatentCache
from k2lab.model.k2 import K2, MLA, Block, Dense, MoE, Router
from k2lab.spec.config import LATENT_NORM_EPS
from k2lab.spec.sites import Tap, parts, rows, takes_arrays
from k2lab.tensors.linear import silu
from k2lab.weights.store import Weights

Array = NDArray[np.float32]
See = Callable[..., Any]
"""`see(site, value, token=0)`: the value after the tap; its token axis would come 0th or 1st."""


class Single:
    """A network of float32 on a CPU, for one token after those that a cache holds."""

    def __init__(self, model: K2) -> None:
        self._model = model
        self._look()

    @property
    def fits(self) -> bool:
        """Whether it is the network of `k2.py`, nothing replaced, in float32 on a CPU."""
        return self._picture.plain

    def __call__(self, token: int, cache: LatentCache, tap: Tap) -> Array:
        """Logits of the token after this one [vocab]; the cache remembers this one.

        By `k2.py`, if the network or the cache is another one by now.
        """
        if self._picture.plain and not self._picture.holds():
            self._look()
        own = type(cache) is LatentCache and vars(cache).keys().isdisjoint(vars(LatentCache))
        if not (self._picture.plain and own):
            return self._readable(token, cache, tap)
        cache.room_for(1)
        see, eps = self._shown(tap), self._config.rms_norm_eps
        place, weights = cache.length, self._weights
        rotation = self._rotary(place, place + 1, self._device).numpy()[0]  # e^{ipω} [1, rope / 2]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # as torch has it
            x = see("embed", weights[None, "embed_tokens"].embed_tokens[token].copy())
            for block in self._layers:
                x = self._block(block, x, rotation, cache, see)
            cache.advance(1)
            x = see("norm", _normed(x, weights[None, "norm"].norm, eps))
            return see("logits", weights[None, "lm_head"].lm_head.dot(x))

    def _look(self) -> None:
        """The network as it is now."""
        model, self._picture = self._model, Picture(self._model)
        if not self._picture.plain:
            return
        self._weights = self._picture.arrays
        self._config, self._store, self._layers = model.config, model.store, model.layers
        self._rotary, self._device = model.rotary, model.device
        self._scales = [block.self_attn.scale.detach().numpy() for block in model.layers]
        routers = [block.mlp.router for block in model.layers if isinstance(block.mlp, MoE)]
        self._factors = {router.layer: router.factor.detach().numpy() for router in routers}
        self._wanted: dict[frozenset[str], frozenset[str]] = {}  # sites, by the rows of the table

    def _readable(self, token: int, cache: LatentCache, tap: Tap) -> Array:
        model = self._model
        step = model.step(1, cache=cache, tap=tap)
        hidden = model.hidden(torch.tensor([[token]], device=model.device), step)
        logits: Array = model.logits(hidden, step)[0, -1].float().numpy(force=True)
        return logits

    def _block(
        self, block: Block, x: Array, rotation: NDArray[np.complex64], cache: LatentCache, see: See
    ) -> Array:
        """h = x + MLA(norm x);  y = h + FFN(norm h)."""
        site, eps = block.site, self._config.rms_norm_eps
        norms = self._weights[block.layer, "norms"]
        x = see(site.input, x)
        inner = _normed(x, norms.input_layernorm, eps)
        x = x + self._attention(block.self_attn, inner, rotation, cache, see)
        x = see(site.middle, x)
        inner = _normed(x, norms.post_attention_layernorm, eps)
        if isinstance(block.mlp, MoE):
            return x + self._moe(block.mlp, inner, see)
        return x + self._dense(block.mlp, inner, see)

    def _attention(
        self, mla: MLA, x: Array, rotation: NDArray[np.complex64], cache: LatentCache, see: See
    ) -> Array:
        """u = W^O [o_1 … o_h], absorbed: no head leaves the latent."""
        config, site, nope, rank = self._config, mla.site, mla.nope, mla.rank
        w = self._weights[mla.layer, "self_attn"]
        q = self._queries(x, w)  # [h, n + r]
        compressed = w.kv_a_proj_with_mqa.dot(x)
        latent = _normed(compressed[:rank], w.kv_a_layernorm, LATENT_NORM_EPS)
        # The shared key is turned with the queries, as one head more.
        both = np.concatenate([q[:, nope:], compressed[None, rank:]]).view(np.complex64)
        turned = (both * rotation).view(np.float32)  # [h + 1, r]
        q_nope, q_rope = see(site.q_nope, q[:, :nope]), see(site.q_rope, turned[:-1])
        memory = cache.row(mla.layer)  # [s, c + r]; its last row is this token's
        memory[-1, :rank] = see(site.latent, latent)
        memory[-1, rank:] = see(site.k_rope, turned[-1])

        by_head = w.kv_b_proj.reshape(config.num_attention_heads, -1, rank)
        w_uk, w_uv = by_head[:, :nope], by_head[:, nope:]  # [h, n, c], [h, v, c]
        query = np.empty((config.num_attention_heads, memory.shape[1]), np.float32)
        np.matmul(q_nope[:, None], w_uk, out=query[:, None, :rank])
        query[:, rank:] = q_rope
        scores = see(site.scores, query.dot(memory.T) * self._scales[mla.layer], 1)  # [h, s]
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights = see(site.weights, weights / weights.sum(1, keepdims=True), 1)
        mixed = weights.dot(memory[:, :rank])  # [h, c]
        heads = see(site.heads, np.matmul(w_uv, mixed[:, :, None])[:, :, 0])  # [h, v]
        return see(site.output, w.o_proj.dot(heads.reshape(-1)))

    def _queries(self, x: Array, w: Weights) -> Array:
        """Through their own latent, or directly where the checkpoint has none: [h, n + r]."""
        if self._config.q_lora_rank is None:
            q = w.q_proj.dot(x)
        else:
            q = w.q_b_proj.dot(_normed(w.q_a_proj.dot(x), w.q_a_layernorm, LATENT_NORM_EPS))
        return q.reshape(self._config.num_attention_heads, -1)

    def _dense(self, dense: Dense, x: Array, see: See) -> Array:
        return see(dense.site.output, _swiglu(x, self._weights[dense.layer, "mlp"]))

    def _moe(self, moe: MoE, x: Array, see: See) -> Array:
        """y = Σ_k g_k · E_k(x) + E_shared(x)."""
        site = moe.site
        experts, weights = self._route(moe.router, x, see)
        batch = self._store.experts(moe.layer, torch.from_numpy(experts[None]))
        w = self._weights[moe.layer, "mlp.shared_experts"]
        shared = see(site.shared_experts_output, _swiglu(x, w))
        each = see(site.experts_rows, batch.rows(torch.from_numpy(x[None])).numpy()[0])  # [k, d]
        return see(site.output, weights.dot(each) + shared)

    def _route(self, router: Router, x: Array, see: See) -> tuple[NDArray[np.int64], Array]:
        """Chosen experts and their mixing weights, [k] each."""
        config, site = self._config, router.site
        w = self._weights[router.layer, "mlp.gate"]
        logits = see(site.logits, w.weight.dot(x))
        scores = see(site.scores, 1 / (1 + np.exp(-logits)))
        choice = scores + w.e_score_correction_bias
        if config.n_group > 1:
            choice = self._within_groups(choice)
        choice = see(site.choice, choice)
        experts = see(site.experts, (-choice).argsort(kind="stable")[: config.num_experts_per_tok])
        weights = scores[experts]
        if config.norm_topk_prob:
            weights = weights / (weights.sum() + 1e-20)
        return experts, see(site.weights, weights * self._factors[router.layer])

    def _within_groups(self, choice: Array) -> Array:
        """Choice scores, −inf outside the `topk_group` best groups (sum of a group's best two)."""
        grouped = choice.reshape(self._config.n_group, -1)
        strength = np.sort(grouped)[:, -2:].sum(1)
        best = (-strength).argsort(kind="stable")[: self._config.topk_group]
        kept = np.full_like(grouped, -np.inf)
        kept[best] = grouped[best]
        return kept.reshape(-1)

    def _shown(self, tap: Tap) -> See:
        """What gives the tap the values that it looks at."""
        called, notes = parts(tap)
        looked_at = rows(called)
        wanted = self._wanted.get(looked_at)
        if wanted is None:
            every = range(len(self._layers))
            wanted = frozenset(row.format(i=layer) for row in looked_at for layer in every)
            self._wanted[looked_at] = wanted
        arrays, told = takes_arrays(called), notes.get

        def see(site: str, value: NDArray[Any], token: int = 0) -> NDArray[Any]:
            if site in wanted:
                shown: Any = value[None, None] if not token else value[None, :, None]
                if not arrays:
                    shown = torch.from_numpy(shown)
                got = called(site, shown)
                if got is not shown:
                    value = np.asarray(got).reshape(value.shape)
            note = told(site)
            if note is not None:
                note(value)
            return value

        return see


def _normed(x: Array, weight: Array, eps: float) -> Array:
    """x / √(mean(x²) + ε) · weight."""
    return x * (1 / math.sqrt(x.dot(x) / len(x) + eps)) * weight


def _swiglu(x: Array, w: Weights) -> Array:
    """W_down (silu(W_gate x) ⊙ W_up x)."""
    return w.down_proj.dot(silu(w.gate_proj.dot(x)) * w.up_proj.dot(x))
