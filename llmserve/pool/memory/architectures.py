"""What llama.cpp knows of each architecture and no file says: which layers keep what.

The rules are those of the llama.cpp that the pinned llama-cpp-python vendors: `llama-model.cpp`
(load_hparams, create_memory), `llama-hparams.cpp` (n_embd_r, n_embd_s) and `models/*.cpp`
(load_arch_hparams).
"""

from typing import Final

from msgspec import Struct

# Encoders and diffusion models, which get no cache at all.
NO_CACHE: Final = frozenset(
    (
        *("bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert"),
        *("eurobert", "modern-bert", "gemma-embedding", "wavtokenizer-dec"),
        *("dream", "llada", "llada-moe", "rnd1"),
    )
)


RECURRENT: Final = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))


# Hybrids: recurrent is a layer without KV heads, or every layer but each nth.
RECURRENT_WITHOUT_HEADS: Final = frozenset(
    (
        *("jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe"),
        *("kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next"),
    )
)


NEMOTRON: Final = frozenset(("nemotron_h", "nemotron_h_moe"))  # a layer has one of three parts


FULL_ATTENTION_INTERVAL: Final = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}


class Window(Struct, frozen=True):
    """Which layers of an architecture see a sliding window only.

    Every `period`th layer is dense (the first of each period if `dense_first`, else the last);
    0 means none is. A `sliding_window_pattern` in the file replaces the period; period 1, all
    dense, is for architectures that always have one. `default_len` applies when the file does
    not say, `fixed_len` whatever it says.
    """

    period: int
    dense_first: bool = False
    default_len: int = 0
    fixed_len: int = 0


WINDOWS: Final = {
    "afmoe": Window(4),
    "cohere2": Window(4),
    "cohere2moe": Window(4, dense_first=True),
    "dots3note": Window(1),
    "exaone-moe": Window(4, default_len=128),
    "exaone4": Window(4, default_len=4_096),
    "gemma2": Window(2, default_len=4_096),
    "gemma3": Window(6),
    "gemma3n": Window(5),
    "gemma4": Window(1),
    "gpt-oss": Window(2),
    "granite_swa": Window(1),
    "laguna": Window(4, dense_first=True),
    "lfm2": Window(0),
    "llama4": Window(4, default_len=8_192, fixed_len=8_192),
    "maple": Window(1),
    "mellum": Window(4),
    "mimo2": Window(1),
    "muse-glimmer": Window(4),
    "olmo2": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, dense_first=True, fixed_len=4_096),
    "spark2_5": Window(1),
    "step35": Window(1),
}
