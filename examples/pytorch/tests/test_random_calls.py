# SPDX-License-Identifier: Apache-2.0
"""Random calls on a windowed layer beside a model of it that keeps the tensors themselves."""

import copy
import random

import pytest
import torch
from gqa_torch import GqaCache, attention
from gqa_torch.cache import attend
from models import make

HEADS, DIM = 2, 16


class Kept:
    """All tokens as tensors; and of how many newest tokens the layer under test promises to have what they see."""

    def __init__(self, cache):
        self.cache, self.layer = cache, cache.layers[0]
        self.window = self.layer.sliding_window
        self.k = self.v = None
        self.recording, self.removable = False, 0

    def length(self):
        return 0 if self.k is None else self.k.shape[2]


def check(kept, numbers, tokens=None, new=0):
    """Attention of the newest tokens: over what update returned for all of these, over what is held later for one."""
    length = kept.length()
    n_q = new if tokens is not None else min(length, numbers.randint(1, 2))
    if length == 0 or n_q == 0:
        return
    if tokens is None:  # only what the layer has: queries whose window begins where it begins, or later
        n_q = min(n_q, length if kept.layer.storage.first_held == 0 else length - kept.window + 1 - kept.layer.storage.first_held)
        if n_q < 1:
            return
    q = torch.randn(kept.k.shape[0], 6, n_q, DIM)
    starts = torch.tensor([numbers.randint(0, length - 1) for _ in range(q.shape[0])]) if numbers.random() < 0.2 else None
    settings = dict(causal=True, window=kept.window, soft_cap=numbers.choice([0.0, 2.0]), sinks=None, scale=None, starts=starts)
    got = attend(kept.layer.held() if tokens is None else tokens, q, settings)
    seen = torch.arange(length) > torch.arange(length - n_q, length)[:, None] - kept.window
    seen &= torch.arange(length) <= torch.arange(length - n_q, length)[:, None]
    if starts is None:
        assert torch.equal(got, attention(q, kept.k, kept.v, causal=True, window=kept.window, soft_cap=settings["soft_cap"]))
        by_mask = dict(settings, causal=False, window=0, mask=seen[None, None])
        assert torch.equal(attend(kept.layer.held() if tokens is None else tokens, q, by_mask), got)
    else:
        seen = seen[None] & (torch.arange(length) >= starts[:, None, None])
        assert torch.equal(got, attention(q, kept.k, kept.v, mask=seen[:, None], soft_cap=settings["soft_cap"]))


def append(kept, numbers):
    new = numbers.choice([0, 1, 1, 1, 2, 7, 23, 24, 25, 63, 64, 65, 130, 200])
    batch = numbers.randint(1, 3) if kept.k is None else kept.k.shape[0]
    if kept.length() + new > 1024 or batch > 12:
        return
    k, v = (torch.randn(batch, HEADS, new, DIM) for _ in range(2))
    if numbers.random() < 0.3:  # as models have them: (batch, tokens, heads, dim)
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    try:
        keys, values = kept.layer.update(k, v)
    except RuntimeError as error:  # of copies and repeated sequences, while nothing is dropped: nothing is changed
        assert "gqa: the pool, of 1024 tokens for each of" in str(error)
        return
    assert keys.shape[2] == kept.length() + new and keys.tokens is values.tokens
    kept.k, kept.v = (new_x if x is None else torch.cat([x, new_x], 2) for x, new_x in ((kept.k, k), (kept.v, v)))
    kept.removable = kept.removable + new if kept.recording else 0
    check(kept, numbers, keys.tokens, new)


def crop(kept, numbers):
    removed = numbers.randint(0, 40)
    if removed == 0:  # drops what is behind the window
        kept.removable = 0
        return kept.cache.layers[0].crop(0)
    if kept.length() >= kept.window and not kept.recording:
        with pytest.raises(RuntimeError, match="activate_past_recording"):
            kept.layer.crop(-removed)
    elif kept.length() >= kept.window and removed > kept.removable:  # may be there by chance
        try:
            kept.layer.crop(-removed)
        except RuntimeError as error:
            assert "expected at most the" in str(error)
        else:
            cut(kept, removed)
    else:
        kept.layer.crop(-removed)
        cut(kept, removed)


def cut(kept, removed):
    left = max(kept.length() - removed, 0)
    kept.k, kept.v = (None if x is None else x[:, :, :left] for x in (kept.k, kept.v))
    kept.removable = 0
    assert kept.layer.get_seq_length() == left


def select(kept, numbers):
    if kept.k is None:
        return
    indices = torch.tensor([numbers.randrange(kept.k.shape[0]) for _ in range(numbers.randint(1, 4))])
    kept.layer.batch_select_indices(indices)
    kept.k, kept.v = kept.k[indices], kept.v[indices]


def repeat(kept, numbers):
    if kept.k is None or kept.k.shape[0] > 4:
        return
    kept.layer.batch_repeat_interleave(2)
    kept.k, kept.v = kept.k.repeat_interleave(2, 0), kept.v.repeat_interleave(2, 0)


def wrong(kept, numbers):
    """What is refused changes nothing."""
    batch = 2 if kept.k is None else kept.k.shape[0]
    shapes = [((batch, HEADS, 5, DIM), (batch, HEADS, 4, DIM)), ((batch, 1, 5, DIM), (batch, HEADS, 5, DIM)), ((0, HEADS, 5, DIM),) * 2]
    if kept.k is not None:
        shapes += [((batch + 1, HEADS, 5, DIM),) * 2, ((batch, HEADS, 100, DIM + 1),) * 2, ((batch, HEADS + 1, 100, DIM),) * 2]
    k, v = (torch.zeros(shape) for shape in numbers.choice(shapes))
    with pytest.raises((ValueError, RuntimeError), match="gqa: "):  # the latter where there is no room for them besides
        kept.layer.update(k, v)
    with pytest.raises(RuntimeError, match="gqa: max_tokens is 1024"):
        kept.layer.update(*(torch.zeros(batch, HEADS, 1025 - kept.length(), DIM) for _ in range(2)))
    if kept.k is not None:
        with pytest.raises((ValueError, IndexError)):
            kept.layer.batch_select_indices(torch.tensor([batch]))


def reset(kept, numbers):
    if numbers.random() < 0.2:
        kept.layer.reset()
        kept.k = kept.v = None
        kept.removable = 0


def record(kept, numbers):
    if not kept.recording:
        kept.layer.activate_past_recording()
        kept.recording, kept.removable = True, 0


@pytest.mark.parametrize("page_size", [1, 7, 16, 64, 100])
@pytest.mark.parametrize("window", [1, 24, 64, 130])
@pytest.mark.parametrize("seed", range(2))
def test_random_calls(seed, window, page_size):
    numbers = random.Random(1000 * window + 10 * page_size + seed)
    torch.manual_seed(seed)
    config = make("mistral").config
    config.sliding_window = window
    caches = [Kept(GqaCache(config, codec="float32", page_size=page_size))]
    held_back = []
    for _ in range(120):
        kept = numbers.choice(caches)
        # Three in five calls append; a pool has room for a few copies.
        numbers.choice([append] * 9 + [crop, crop, select, repeat, wrong, record, reset])(kept, numbers)
        check(kept, numbers)
        if numbers.random() < 0.05 and len(caches) < 4:
            other = Kept(copy.deepcopy(kept.cache))
            other.k, other.v, other.recording, other.removable = kept.k, kept.v, kept.recording, kept.removable
            caches.append(other)
        if numbers.random() < 0.1 and kept.length() > 0 and kept.layer.storage.first_held <= max(kept.length() - window, 0):
            held_back.append((kept.layer.held(), kept.k, kept.v))
        for tokens, k, v in held_back[-3:]:  # shows what was there, whatever came after
            q = torch.randn(k.shape[0], 6, 1, DIM)
            settings = dict(causal=True, window=window, soft_cap=0.0, sinks=None, scale=None)
            assert torch.equal(attend(tokens, q, settings), attention(q, k, v, causal=True, window=window))
        del held_back[:-3]
        assert kept.layer.get_seq_length() == kept.length()
        if not kept.recording:
            size = -(-64 // page_size) * page_size
            assert kept.layer.storage.first_held > kept.length() - window - size or kept.length() == 0
