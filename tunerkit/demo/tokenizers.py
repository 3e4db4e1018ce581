"""Small tokenizers of the real classes, learnt from a few sentences in a moment.

The byte-pair merges are counted here, in plain Python, because the trainer of the `tokenizers` package
numbers some tokens in hash order: the same sentences would give other files in the next process.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

GEMMA_SPECIALS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
"""In the order that gives pad, eos, bos and unk the numbers 0 to 3, as in the published Gemma files."""

SPACE = "▁"
"""SentencePiece writes a space as this character; Gemma's words begin with it."""


def byte_pair_merges(words: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al., arXiv 1508.07909): joins the commonest neighbours again and again.

    Ties go to the pair that sorts first, so the result depends on the words alone.

    Args:
        words: the training words, repeated as often as they occur.
        count: how many merges to learn; fewer when every word has become one token.

    Returns:
        The merges in the order they apply.
    """
    spellings = Counter(tuple(word) for word in words)
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for spelling, times in spellings.items():
            for pair in itertools.pairwise(spelling):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for spelling, times in spellings.items():
            joined[_join(spelling, best)] += times
        spellings = joined
    return merges


def _join(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for token in spelling:
        # A part that was joined a moment ago is longer than pair[0], so it cannot be joined twice.
        if result and result[-1] == pair[0] and token == pair[1]:
            result[-1] = pair[0] + pair[1]
        else:
            result.append(token)
    return tuple(result)


def gemma_tokenizer(
    corpus: Iterable[str], merges: int = 400, max_length: int = 8192, **settings: Any
) -> Any:  # GemmaTokenizer
    """A `GemmaTokenizer` with byte fallback, so that any text can be encoded, in any script.

    Args:
        corpus: sentences to learn from; lower case is learnt too, because Sana's pipeline lowers its prompts.
        merges: byte-pair merges to learn at most.
        max_length: the longest text in tokens; the instruction text before Sana's prompts needs more than a
            thousand.
        settings: passed to the class, for example `extra_special_tokens` of the multimodal Gemma 3.
    """
    from transformers import GemmaTokenizer

    words = [
        word
        for sentence in corpus
        for text in dict.fromkeys((sentence, sentence.lower()))
        for word in re.findall(rf"{SPACE}?[^\W_]+|{SPACE}?[^\w\s{SPACE}]+", SPACE + text.replace(" ", SPACE))
    ]
    learnt = byte_pair_merges(words, merges)
    pieces = [*GEMMA_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    pieces += sorted({character for word in words for character in word})
    pieces += [left + right for left, right in learnt]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    # The class adds no <bos> by itself. Without one, an empty negative prompt would be an all-zero attention
    # mask.
    return GemmaTokenizer(
        vocab=vocabulary,
        merges=learnt,  # pyright: ignore[reportArgumentType] - annotated as strings, taken as pairs
        add_bos_token=True,
        model_max_length=max_length,
        **settings,
    )
