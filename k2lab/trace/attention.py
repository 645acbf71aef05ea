"""What the heads read, computed from the latents and queries that a trace holds.

One latent and one rotated key per token serve all heads; with the query absorbed through W^UK,

    score(t, s) = query_latent(t) · latent(s) + query_rope(t) · key_rope(s)

is the attention site's logit, for any captured head of any captured layer, to rounding. Values are
those that the network used; an edit of the scores or weights themselves is not in them. Needs the
capture level `attention`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2lab.errors import TraceError
from k2lab.trace.captured import ATTENTION
from k2lab.trace.trace import Trace

Numbers = NDArray[np.float32]

FORGOTTEN = np.float32(-1e30)  # logit of what no longer is in the cache: its weight is 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the captured heads of one layer read at one token."""

    weights: Numbers  # [head, source], rows sum to 1
    rope: Numbers  # [head], the rotated part's share of |logit|, weighted by `weights`
    norm: Numbers  # [source], length of each cached latent


def scores(trace: Trace, layer: int, token: int) -> Numbers:
    """Logits of the captured heads at the token [head, source], sources 0 … token."""
    plain, rotated, _ = _parts(trace, layer, token)
    return plain + rotated


def weights(trace: Trace, layer: int, token: int) -> Numbers:
    """Softmax of the scores [head, source]; rows are in the order of `trace.captured.heads`."""
    return softmax(scores(trace, layer, token))


def reading(trace: Trace, layer: int, token: int) -> Reading:
    """Weights of the captured heads, how much of them is position, and the latents' lengths."""
    plain, rotated, latent = _parts(trace, layer, token)
    read = softmax(plain + rotated)
    part = (read * np.abs(rotated)).sum(-1)
    whole = part + (read * np.abs(plain)).sum(-1)
    share = part / np.maximum(whole, np.float32(1e-20))
    return Reading(read, share, np.linalg.norm(latent, axis=-1).astype(np.float32))


def strongest(trace: Trace, layer: int, token: int, count: int = 16) -> NDArray[np.intp]:
    """The sources that each captured head reads most [head, count], the strongest first."""
    order = np.argsort(-weights(trace, layer, token), axis=-1, kind="stable")
    return order[:, :count]


def softmax(values: Numbers) -> Numbers:
    """Softmax over the last axis."""
    spread = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(spread / spread.sum(axis=-1, keepdims=True), np.float32)


def _parts(trace: Trace, layer: int, token: int) -> tuple[Numbers, Numbers, Numbers]:
    """Logits without and with position [head, source], and the latents [source, latent]."""
    captured = trace.captured
    latent, key, in_latent, in_rope = (captured.values(name, layer) for name in ATTENTION)
    known = min(len(latent), len(key), len(in_latent), len(in_rope))  # a run may go on meanwhile
    if captured.first > 0:  # after the values: it only grows, so at 0 they all begin there
        raise TraceError(
            f"The latents of tokens 0 … {captured.first - 1} were given up to stay in the budget.",
            expected="the latents of all tokens that the heads may read.",
            mend="give capture more bytes, level.within(budget), or name fewer layers and heads.",
        )
    if not 0 <= token < known:
        raise TraceError(
            f"Attention at token {token}.",
            expected=f"a token from 0 to {known - 1}, those that were captured.",
            mend="wait until the run has read the token, or choose another one.",
        )
    latent, key = latent[: token + 1], key[: token + 1]
    plain, rotated = in_latent[token] @ latent.T, in_rope[token] @ key.T
    plain[:, : trace.context_of(token)] = FORGOTTEN
    return plain, rotated, latent
