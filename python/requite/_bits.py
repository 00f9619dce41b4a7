# SPDX-License-Identifier: Apache-2.0
"""Streams of codes in 32-bit words, least significant bit first (docs/formats.md): element i of a row takes bits [i b, (i + 1) b)."""
import torch


def unpack(words, bits: int, count: int):
    """words int32 [n, ceil(count bits / 32)] as int32 codes [n, count]."""
    at = torch.arange(count, device=words.device) * bits
    word, shift = at >> 5, at & 31
    low = (words.long() & 0xffffffff)[:, word] >> shift
    next_word = torch.clamp(word + 1, max=words.shape[1] - 1)
    high = torch.where(shift + bits > 32, (words.long() & 0xffffffff)[:, next_word] << (32 - shift), 0)
    return ((low | high) & ((1 << bits) - 1)).int()


def pack(codes, bits: int):
    """codes [n, count], whole numbers below 2^bits, as int32 words [n, ceil(count bits / 32)]."""
    n, count = codes.shape
    at = torch.arange(count, device=codes.device) * bits
    word, shift = at >> 5, at & 31
    n_words = -(-count * bits // 32)
    wide = codes.long() << shift  # up to 47 bits: parts of two words, and no two codes share a bit, so that sums are ors
    total = torch.zeros((n, n_words + 1), dtype=torch.int64, device=codes.device)
    total.index_add_(1, word, wide & 0xffffffff)
    total.index_add_(1, word + 1, wide >> 32)
    total = total[:, :n_words]
    return torch.where(total >= 1 << 31, total - (1 << 32), total).int().contiguous()
