"""INT4 matrices on a GPU, read as the checkpoint packs them: two kernels in Triton.

    expand   w = code · scale, rounded once: the bits of `int4.dequantise`
    linear   y[r] = W[places[r]] x[r], each code read once and never written out

Decoding one token of Kimi K2 touches 8 of 384 experts in each layer. Expanded they would be written
out and read again in four times the bytes; the product reads the codes alone and adds in float32.
Each row of the output belongs to one program, so it does not depend on what else is asked for, nor
on where in memory the expert lies.
Triton comes with torch's CUDA builds. Without a GPU its interpreter runs the same kernels.
What it is not: a kernel for prompts, where an expert serves many tokens (`linear.expert_rows`).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from k2lab.tensors.int4 import GROUP, PER_WORD

ROWS = 8  # of a matrix that one program multiplies
WORDS = 64  # of each row that it reads at once
SPAN = 1024  # words that one program expands
FEW = 128  # requests up to which codes are read for each anew (measured: H200, K2's width)
GROUP_WORDS = GROUP // PER_WORD


def expand(words: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [..., out, in] in `dtype` from words [..., out, in / 8], scales [..., out, in / 32].

    The same bits as `int4.dequantise(int4.unpack(words), scale, dtype)`.
    """
    words, scale = words.contiguous(), scale.contiguous()
    *outer, inner = words.shape
    out = torch.empty(*outer, inner * PER_WORD, dtype=dtype, device=words.device)
    count = words.numel()
    with torch.cuda.device_of(words):  # Triton launches on the current GPU, wherever the data lies
        _expand[(triton.cdiv(count, SPAN),)](words, scale, out, count, GROUP_WORDS, PER_WORD, SPAN)
    return out


def swiglu_rows(
    x: Tensor, places: Tensor, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]
) -> Tensor:
    """SwiGLU_p(x) for the places p [token, slot] of each token: [token, slot, hidden].

    The stacks are words and scales each, as `linear` takes them; −1 is computed for nobody.
    """
    requests = places.flatten()
    gate, up = linear(x.repeat_interleave(places.shape[1], 0), requests, *gate_up).chunk(2, -1)
    return linear(F.silu(gate) * up, requests, *down).view(*places.shape, -1)


def linear(x: Tensor, places: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """W_p x for each row of x [row, in] and its place p in the stack: [row, out] in x's dtype.

    `words` [place, out, in / 8] and `scale` [place, out, in / 32] may lie apart from place to
    place; each matrix lies in one piece. Where `places` [row] is −1, nothing is computed, and the
    output is undefined.
    """
    rows, outer, inner = len(places), words.shape[1], words.shape[2]
    y = torch.empty(rows, outer, dtype=x.dtype, device=x.device)
    grid = (rows, triton.cdiv(outer, ROWS))
    with torch.cuda.device_of(words):
        _linear[grid](
            x, places, words, scale, y, words.stride(0), scale.stride(0),
            outer, inner, GROUP_WORDS, PER_WORD, ROWS, WORDS,
        )  # fmt: skip
    return y


@triton.jit
def _expand(
    words, scale, out, count,
    group_words: tl.constexpr, per_word: tl.constexpr, span: tl.constexpr,
) -> None:  # fmt: skip
    word = tl.program_id(0).to(tl.int64) * span + tl.arange(0, span)
    nibble = tl.arange(0, per_word)
    packed = tl.load(words + word, mask=word < count, other=0)
    factor = tl.load(scale + word // group_words, mask=word < count, other=0).to(tl.float32)
    codes = ((packed[:, None] >> (4 * nibble)[None, :]) & 0xF) - 8
    values = codes.to(tl.float32) * factor[:, None]
    places = word[:, None] * per_word + nibble[None, :]
    tl.store(out + places, values, mask=(word < count)[:, None])


@triton.jit
def _linear(
    x, places, words, scale, y, word_stride, scale_stride,
    outer: tl.constexpr, inner: tl.constexpr, group_words: tl.constexpr, per_word: tl.constexpr,
    rows: tl.constexpr, span: tl.constexpr,
) -> None:  # fmt: skip
    request = tl.program_id(0).to(tl.int64)
    place = tl.load(places + request).to(tl.int64)
    if place >= 0:
        row = tl.program_id(1) * rows + tl.arange(0, rows)
        nibble = tl.arange(0, per_word)
        words += place * word_stride
        scale += place * scale_stride
        x += request * inner * per_word
        total = tl.zeros([rows, span], tl.float32)
        for start in range(0, inner, span):
            word = start + tl.arange(0, span)
            inside = (row < outer)[:, None] & (word < inner)[None, :]
            at = row[:, None] * inner + word[None, :]
            packed = tl.load(words + at, mask=inside, other=0)
            factor = tl.load(scale + at // group_words, mask=inside, other=0).to(tl.float32)
            numbers = word[:, None] * per_word + nibble[None, :]
            given = tl.load(x + numbers, mask=(word < inner)[:, None], other=0).to(tl.float32)
            codes = ((packed[:, :, None] >> (4 * nibble)[None, None, :]) & 0xF) - 8
            total += tl.sum(codes.to(tl.float32) * given[None, :, :], 2) * factor
        tl.store(y + request * outer + row, tl.sum(total, 1), mask=row < outer)
