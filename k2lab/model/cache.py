"""What MLA remembers: one latent and one shared rotary key per token and layer.

For K2 Thinking 512 + 64 values, 70,272 bytes per token over 61 layers in bfloat16. The cache is an
object of its own: it is passed in with each step, it can be cut back, and it can be forked, so that
two runs share the tokens they have in common.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from k2lab.errors import ContextError
from k2lab.spec.config import K2Config

CHUNK = 256  # tokens by which a buffer grows at least
_FLOATS = torch.empty(0)  # float32 on a CPU


class LatentCache:
    """Latents c^KV and rotated keys k^R of all layers, [batch, capacity, latent + rope] each."""

    def __init__(self, config: K2Config, *, batch: int = 1) -> None:
        self.config = config
        self.batch = batch
        self.length = 0  # tokens remembered in every layer
        self._buffers: list[Tensor | None] = [None] * config.num_hidden_layers
        self._shared = [False] * config.num_hidden_layers  # buffer also belongs to another cache

    def append(self, layer: int, memory: Tensor) -> Tensor:
        """Remember [batch, token, latent + rope] after the first `length` tokens; all so far.

        `length` moves on by `advance`, once all layers have appended.
        """
        end = self.length + memory.shape[1]
        buffer = self._room(layer, end, memory)
        buffer[:, self.length : end] = memory
        return buffer[:, :end]

    def row(self, layer: int) -> NDArray[np.float32]:
        """What a float32 cache of one text holds on a CPU, [token, latent + rope], and one row.

        The last row is for the next token, to be written by whoever asks.
        """
        buffer = self._room(layer, self.length + 1, _FLOATS)
        return buffer.numpy()[0, : self.length + 1]

    def advance(self, tokens: int) -> None:
        """Every layer has appended these tokens."""
        self.length += tokens

    def room_for(self, tokens: int) -> None:
        """Raise if so many more tokens would not fit the model's context."""
        limit = self.config.max_position_embeddings
        if self.length + tokens > limit:
            raise ContextError(
                f"{self.length} tokens are cached and {tokens} more were given.",
                expected=f"at most {limit} tokens in all (max_position_embeddings).",
                mend="Shorten the prompt, start a new conversation, or load a longer model.",
            )

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.length = max(0, min(self.length, length))

    def fork(self) -> "LatentCache":
        """A cache with the same tokens that can grow on its own; copied on the first write."""
        twin = LatentCache(self.config, batch=self.batch)
        twin.length = self.length
        twin._buffers = list(self._buffers)
        # Both sides must copy before they write: neither may see the other's tokens.
        self._shared = [buffer is not None for buffer in self._buffers]
        twin._shared = list(self._shared)
        return twin

    def nbytes(self) -> int:
        """Bytes of the remembered tokens (not of the spare room)."""
        kept = (buffer[:, : self.length] for buffer in self._buffers if buffer is not None)
        return sum(part.numel() * part.element_size() for part in kept)

    def _room(self, layer: int, end: int, like: Tensor) -> Tensor:
        old = self._buffers[layer]
        if old is not None and old.shape[1] >= end and not self._shared[layer]:
            return old
        width = self.config.kv_lora_rank + self.config.qk_rope_head_dim
        capacity = end + CHUNK
        if old is not None and old.shape[1] < end:  # full, not only shared with a fork
            capacity = max(capacity, 2 * old.shape[1])
        fresh = torch.empty(self.batch, capacity, width, dtype=like.dtype, device=like.device)
        if old is not None:
            fresh[:, : self.length] = old[:, : self.length]
        self._buffers[layer] = fresh
        self._shared[layer] = False
        return fresh
