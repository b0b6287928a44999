# SPDX-License-Identifier: Apache-2.0
"""A cache of transformers whose keys and values lie in the library's own storage: pages, quantised or not."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from gqa_torch import _C
from gqa_torch.without_data import TensorWithoutData


class EncodedTensor(TensorWithoutData):
    """What GqaCache.update returns for keys and values: their shape and type, and the layer that holds them. The attention implementation
    "gqa" reads that layer's storage; any other use is an error, as there are no elements to compute with."""

    on_error = None  # called where attention over them is an error, by which the cache learns of it

    def materialise(self):
        raise RuntimeError(
            "gqa: the keys and values of a GqaCache are encoded and are no tensor; expected a model with attn_implementation='gqa', "
            "or another cache"
        )


def attend(tokens, query, settings):
    """Attention of the newest tokens over `tokens`, a layer's storage or what WindowedKvCache.append returned; settings as those of
    gqa_torch.attention."""
    settings = dict(settings)
    lengths = settings.pop("lengths", None)
    mask, starts = settings.get("mask"), settings.get("starts")
    if lengths is not None and bool((lengths != tokens.length).any()):
        if mask is None and not settings.get("causal", False):  # padding on the right, of what cross-attention reads
            positions = torch.arange(tokens.length)
            there = (positions < lengths[:, None]) & (positions >= (0 if starts is None else starts[:, None]))
            return attend(tokens, query, dict(settings, mask=there[:, None, None], starts=None))
        raise ValueError(f"gqa: lengths is {lengths.tolist()}; expected {tokens.length}, the tokens of a GqaCache, for all")
    return tokens.attention(query.resolve_neg(), mask, settings.get("causal", False), settings.get("window", 0), settings["soft_cap"],
                            settings["sinks"], settings["scale"], starts)


def windows_of(config):
    """The sliding window of each layer, 0 where there is none, as transformers finds it for a DynamicCache."""
    layers = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    if types is not None and not set(types) <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"gqa: config.layer_types has {sorted(set(types))}; expected full_attention and sliding_attention alone")
    windows = [getattr(layer, "sliding_window", None) or 0 for layer in layers]
    return windows if types is None else [w if t == "sliding_attention" else 0 for w, t in zip(windows, types)]


class GqaCacheLayer(CacheLayerMixin):
    """One layer's keys and values of all sequences of the batch: all tokens."""

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, storage, max_tokens):
        self.rows = None  # (heads, dim, dtype) of keys and of values
        super().__init__()
        self.storage = storage
        self.max_tokens = max_tokens

    def lazy_initialization(self, key_states, value_states):
        self.is_initialized = True

    def append(self, key_states, value_states):
        """Encodes tokens behind those held; returns what their queries are to read."""
        self.storage.append(key_states, value_states)
        return self.storage

    def held(self):
        """What queries that come without tokens are to read, as those of cross-attention."""
        return self.storage

    def update(self, key_states, value_states, *_, **__):
        """Encodes tokens, (batch, KV heads, tokens, D or Dv), behind those held."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise RuntimeError("gqa: key_states require a gradient; expected torch.no_grad() with a GqaCache, which has none to give")
        tokens = self.append(key_states.resolve_neg(), value_states.resolve_neg())
        self.is_initialized = True
        self.rows = [(x.shape[1], x.shape[3], x.dtype) for x in (key_states, value_states)]
        return self._handle(0, tokens), self._handle(1, tokens)

    def _handle(self, i, tokens=None):
        if self.rows is None or not self.storage.sequences:
            return None
        heads, dim, dtype = self.rows[i]
        handle = EncodedTensor((self.storage.sequences, heads, self.storage.length, dim), dtype)
        handle.tokens = self.held() if tokens is None else tokens  # made for each use, not kept: what is read is free after it
        return handle

    # Cross-attention reads them here, where its keys and values are there from the step before. The base class's constructor assigns None.
    keys = property(lambda self: self._handle(0), lambda self, _: None)
    values = property(lambda self: self._handle(1), lambda self, _: None)

    def get_seq_length(self):
        return self.storage.length

    def get_mask_sizes(self, query_length):
        # Positions are those of the sequence, also where the first tokens are not kept.
        return self.storage.length + query_length, 0

    def get_max_length(self):
        return self.max_tokens

    def reset(self):
        self.storage.clear()
        self.is_initialized = False

    def check_crop(self, tokens_to_remove):
        """Raises what crop would, before a layer has been changed."""
        if tokens_to_remove > 0:
            raise ValueError(f"gqa: tokens_to_remove is {tokens_to_remove}; expected 0, or minus the number of tokens to remove")

    def crop(self, tokens_to_remove):
        self.check_crop(tokens_to_remove)
        if tokens_to_remove < 0 and self.storage.sequences:
            self.storage.truncate(max(self.storage.length + tokens_to_remove, 0))

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices):
        if self.storage.sequences:
            self.storage.select(torch.arange(self.storage.sequences)[indices.cpu()].tolist())

    def batch_repeat_interleave(self, repeats):
        self.batch_select_indices(torch.arange(self.storage.sequences).repeat_interleave(repeats))

    def offload(self):
        raise NotImplementedError("gqa: a GqaCache lies in the processor's memory already")

    prefetch = offload


class GqaSlidingLayer(GqaCacheLayer):
    """The same of a layer with a sliding window, which keeps the tokens that the next one sees, and what else is in their pages.

    As transformers' own: once there are as many tokens as the window has positions, tokens can be removed only while the past is recorded.
    """

    is_sliding = True

    def __init__(self, storage, max_tokens, sliding_window):
        super().__init__(storage, max_tokens)
        self.sliding_window = sliding_window
        self.record_past = False

    def activate_past_recording(self):
        """From here on nothing is dropped until crop is called, so that it can remove what was appended since."""
        self.record_past = True

    def append(self, key_states, value_states):
        return self.storage.append(key_states, value_states, self.record_past)

    def held(self):
        return self.storage.held()

    def check_crop(self, tokens_to_remove):
        super().check_crop(tokens_to_remove)
        length, first = self.storage.length, self.storage.first_held
        if tokens_to_remove == 0 or length < self.sliding_window:
            return
        if not self.record_past:
            raise RuntimeError(
                f"gqa: tokens_to_remove is {tokens_to_remove}; expected activate_past_recording before these tokens came, as the sliding "
                f"window of {self.sliding_window} is full"
            )
        most = length if first == 0 else length - (first + self.sliding_window - 1)
        if -tokens_to_remove > most:
            raise RuntimeError(f"gqa: tokens_to_remove is {tokens_to_remove}; expected at most the {most} newest tokens, as the window before "
                               "the others is not kept")

    def crop(self, tokens_to_remove):
        super().crop(tokens_to_remove)
        self.storage.drop_behind_window()


class GqaCache(Cache):
    """A cache that appends what a model computes to the library's storage, and that attention reads as it is stored.

        model.generate(**inputs, cache=gqa_torch.GqaCache(model.config, codec="int8"))

    config       the model's; all its layers must be layers of attention
    codec        how keys are stored: "float32", "bfloat16", "float16", "int8", "int4" or "q8_0" (head dims that are multiples of 32)
    value_codec  how values are stored; the same as keys unless given
    kind         "paged": pages of a pool that the sequences of a batch, beams among them, share; "contiguous": one piece a sequence
    max_tokens   that a sequence may have; the model's max_position_embeddings unless given. Memory is taken as tokens come.
                 A pool has room for so many of each sequence of the first batch. What batch_repeat_interleave and copy.deepcopy add shares
                 its pages and that room: more than fits is an error of the pool
    page_size    tokens in a page
    rotation     keys and values are rotated by Hadamard matrices of so many dims, which helps few bits; a power of two that divides the
                 widths; 0: they are not
    first_tokens, newest_tokens   so many are kept in bf16 besides, and read as that; first_tokens is a multiple of 64

    all_tokens   keep all tokens in layers with a sliding window, too. Else those keep the tokens that the next one sees, and what else is in
                 their pages (of 64 tokens at least), in pages whatever `kind` is, and results are the same bits. All are kept, too, where there
                 are first_tokens or newest_tokens; a cache for cross-attention needs all_tokens=True.

    The model must have attn_implementation="gqa": see EncodedTensor.
    """

    def __init__(self, config, codec="bfloat16", value_codec=None, kind="paged", max_tokens=None, page_size=64, rotation=0, first_tokens=0,
                 newest_tokens=0, all_tokens=False):
        if kind not in ("paged", "contiguous"):
            raise ValueError(f"gqa: kind is {kind!r}; expected 'paged' or 'contiguous'")
        if not hasattr(config, "get_text_config"):
            raise ValueError(f"gqa: config is of type {type(config).__name__}; expected a model's configuration, as model.config")
        config = config.get_text_config(decoder=True)
        if max_tokens is None and getattr(config, "max_position_embeddings", None) is None:
            raise ValueError(
                f"gqa: max_tokens is None; expected a number, as {type(config).__name__} has no max_position_embeddings")
        max_tokens = config.max_position_embeddings if max_tokens is None else max_tokens
        storage = _C.CacheConfig(paged=kind == "paged", codec=str(codec), value_codec=str(codec if value_codec is None else value_codec),
                                 max_tokens=max_tokens, page_size=page_size, rotation=rotation, first_tokens=first_tokens,
                                 newest_tokens=newest_tokens)
        room = _C.ChunkRoom()
        keep_all = all_tokens or first_tokens or newest_tokens

        def layer(window):
            if window and not keep_all:
                return GqaSlidingLayer(_C.WindowedKvCache(storage, window, room), max_tokens, window)
            return GqaCacheLayer(_C.KvCache(storage), max_tokens)

        super().__init__(layers=[layer(window) for window in windows_of(config)])
        self.failed_layer = None

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """As GqaCacheLayer.update. Where a layer refuses tokens that those before it took, or its attention is an error, the cache is of no more
        use: what is appended to it later would be behind other tokens in each. It says so until reset()."""
        if self.failed_layer is not None:
            raise RuntimeError(f"gqa: the cache's layers hold different tokens, as there was an error in layer {self.failed_layer}; "
                               "expected reset() before more, or another copy")
        try:
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        except Exception:
            self._note_error(layer_idx)
            raise
        if keys is not None:
            keys.on_error = lambda: self._note_error(layer_idx)
        return keys, values

    def _note_error(self, layer_idx):
        held = [layer.get_seq_length() for layer in self.layers]
        if max(held[:layer_idx], default=0) > held[layer_idx] or held[layer_idx] > min(held[layer_idx:]):
            self.failed_layer = layer_idx

    def reset(self):
        super().reset()
        self.failed_layer = None

    def crop(self, tokens_to_remove):
        """Removes -tokens_to_remove tokens of all layers, or of none where a layer refuses it."""
        for layer in self.layers:
            layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    @property
    def bytes_used(self):
        """Bytes of memory that hold tokens, of all layers: whole pages."""
        return sum(layer.storage.bytes_used for layer in self.layers)
