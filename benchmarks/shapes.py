"""Models and the lengths of what they are trained on, and how many operations that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Tokens of a prompt, its chosen and its rejected completion, with one BOS and one EOS counted in.
PairLengths = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """A model and the pairs that it is trained on.

    Attributes:
        config: Fields of its configuration.
        lengths: Of the pairs of each step; taken from the beginning again when they are used up.
        warmup: Steps that are not counted, at least 1.
        steps: Steps that are.
        methods: What is measured unless something else is asked for; none stands for all.
        architecture: As transformers calls it.
    """

    config: dict[str, Any]
    lengths: tuple[tuple[PairLengths, ...], ...]
    warmup: int
    steps: int
    methods: tuple[str, ...] = ()
    architecture: str = "llama"

    @property
    def pairs(self) -> int:
        """Pairs a step."""
        return len(self.lengths[0])

    def all_lengths(self, steps: int) -> list[tuple[PairLengths, ...]]:
        """Returns the pairs' lengths of all steps of a run, those of its warm-up first."""
        return [self.lengths[step % len(self.lengths)] for step in range(self.warmup + steps)]


def llama(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int) -> dict[str, Any]:
    """Returns the fields of a configuration, with a tied head."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


def real_tokens(step: tuple[PairLengths, ...]) -> int:
    """Tokens that are no padding; a prompt counts once with each of its completions.

    >>> real_tokens(((5, 9, 4), (3, 4, 12)))
    45
    """
    return sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in step)


def padded_tokens(step: tuple[PairLengths, ...]) -> int:
    """Places of a step's rows when all are as long as the longest.

    >>> padded_tokens(((5, 9, 4), (3, 4, 12)))
    60
    """
    return 2 * len(step) * max(prompt + max(sides) for prompt, *sides in step)


def model_flops(config: dict[str, Any], step: tuple[PairLengths, ...], *, passes: int) -> float:
    """Counts the operations that a step's real tokens need, each completion with a prompt of its own.

    A weight of the blocks costs two operations a token and pass, attention two for each of its two products and pair
    of tokens that see one another, the head two a weight for each token of a completion. What a layout saves counts as
    done, what padding or recomputing adds does not.

    Args:
        config: As :func:`llama` makes it.
        step: Lengths of the pairs.
        passes: 3 for a training step (a backward pass is two forward ones), and 1 more with a reference model.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    shared = 2 * hidden * hidden * (1 + config["num_key_value_heads"] / heads)
    block = shared + 3 * hidden * config["intermediate_size"]
    layers = config["num_hidden_layers"]
    total = 0.0
    for prompt, *sides in step:
        for side in sides:
            tokens = prompt + side
            total += 2 * layers * (block * tokens + hidden * tokens**2) + 2 * hidden * config["vocab_size"] * side
    return passes * total


#: 32 of the 1,864 usable pairs of HH-RLHF harmless-base, drawn by random.Random(1).sample, in tokens of the Llama
#: vocabulary of 32,000 and cut as conf/data/hh.yaml cuts them; equal_inputs.hh_lengths makes them again.
HH_LENGTHS: tuple[PairLengths, ...] = (
    (180, 50, 11),
    (56, 16, 19),
    (512, 256, 164),
    (23, 10, 40),
    (22, 16, 18),
    (408, 58, 28),
    (81, 13, 4),
    (58, 70, 55),
    (131, 38, 74),
    (23, 47, 37),
    (26, 98, 19),
    (29, 59, 31),
    (99, 32, 64),
    (120, 83, 43),
    (471, 41, 70),
    (405, 153, 156),
    (122, 111, 54),
    (67, 23, 15),
    (135, 65, 58),
    (358, 83, 56),
    (41, 4, 13),
    (32, 48, 39),
    (94, 30, 4),
    (30, 119, 36),
    (182, 13, 53),
    (121, 64, 277),
    (24, 87, 72),
    (22, 12, 27),
    (75, 34, 16),
    (60, 44, 42),
    (88, 39, 13),
    (69, 8, 48),
)

_SMALL = llama(288, 6, 6, 6, 768, 32_000)
#: The shape of SmolLM2-135M.
_135M = llama(576, 30, 9, 3, 1536, 49_152)
_EVEN = ((128, 128, 128),) * 4
SHAPES = {
    "tiny": Shape(
        llama(32, 2, 4, 2, 64, 128),
        (((5, 9, 4), (3, 4, 12), (8, 6, 6), (2, 5, 3)), ((4, 4, 4), (9, 2, 7), (3, 3, 8), (6, 11, 5))),
        warmup=1,
        steps=2,
    ),
    "1M": Shape(llama(128, 4, 4, 4, 512, 1024), (((24, 24, 24),) * 16,), warmup=10, steps=60),
    "stories15M": Shape(_SMALL, (_EVEN,), warmup=1, steps=4),
    "hh": Shape(
        _SMALL,
        tuple(HH_LENGTHS[i : i + 4] for i in range(0, len(HH_LENGTHS), 4)),
        warmup=1,
        steps=7,
        methods=("dpo_frozen_copy", "dpo_precomputed"),
    ),
    # Lengths uneven as in dialogue, with means of 128.
    "135M": Shape(
        _135M,
        (((64, 200, 96), (96, 64, 160), (160, 128, 48), (192, 148, 180)),),
        warmup=1,
        steps=3,
        methods=("dpo_frozen_copy", "dpo_precomputed"),
    ),
    "135M-hh": Shape(
        _135M,
        tuple(HH_LENGTHS[i : i + 4] for i in range(0, len(HH_LENGTHS), 4)),
        warmup=1,
        steps=4,
        methods=("dpo_frozen_copy", "dpo_precomputed"),
    ),
    # The shapes of Qwen2.5, for a GPU.
    "qwen-0.5B": Shape(
        llama(896, 24, 14, 2, 4864, 151_936),
        (((512, 200, 312), (256, 512, 384), (768, 128, 256), (384, 256, 192)) * 2,),
        warmup=3,
        steps=10,
        methods=("dpo_frozen_copy", "dpo_precomputed", "sft"),
        architecture="qwen2",
    ),
    "qwen-1.5B": Shape(
        llama(1536, 28, 12, 2, 8960, 151_936),
        (((512, 200, 312), (256, 512, 384), (768, 128, 256), (384, 256, 192)) * 2,),
        warmup=3,
        steps=10,
        methods=("dpo_frozen_copy", "dpo_precomputed", "sft"),
        architecture="qwen2",
    ),
}
