"""The two small tokenizers of the Kandinsky demo: byte-level ones of Qwen's and of CLIP's class."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

from tunerkit.demo.tokenizers import byte_pair_merges

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
CLIP_LENGTH = 77
CLIP_MERGES = 300


def qwen_tokenizer(corpus: Iterable[str], prefix: str, prefix_tokens: int) -> Any:  # Qwen2Tokenizer
    """A `Qwen2Tokenizer` for any text in any script, to which `prefix` is exactly `prefix_tokens` tokens.

    Kandinsky's pipelines put a fixed instruction before every prompt and cut a fixed number of tokens off again, so a
    tokenizer that spells the instruction otherwise would leave parts of it in the prompt, or swallow the prompt.

    Args:
        corpus: sentences to learn from, besides the prefix.
        prefix: the text before every prompt.
        prefix_tokens: how many tokens it shall be.

    Raises:
        ValueError: no number of merges spells the prefix so.
    """
    from transformers import Qwen2Tokenizer

    def with_merges(merges: list[tuple[str, str]]) -> Any:
        return Qwen2Tokenizer(
            vocab=_vocabulary([*_byte_letters(), *(left + right for left, right in merges)]),
            merges=merges,  # pyright: ignore[reportArgumentType] - annotated as strings, taken as pairs
            extra_special_tokens=list(QWEN_SPECIALS[1:]),
            model_max_length=32768,
        )

    bare = with_merges([])
    words = [word for text in (prefix, *corpus) for word in _words(bare, text)]
    merges = byte_pair_merges(words, len(prefix) + 1000)

    def shortened_by(count: int) -> int:
        return -len(with_merges(merges[:count])(prefix)["input_ids"])

    # A merge never makes a text longer.
    enough = bisect.bisect_left(range(len(merges) + 1), -prefix_tokens, key=shortened_by)
    if enough > len(merges) or shortened_by(enough) != -prefix_tokens:
        raise ValueError(f"no number of merges makes {prefix_tokens} tokens of the prefix; change the corpus")
    return with_merges(merges[:enough])


def clip_tokenizer(corpus: Iterable[str]) -> Any:  # CLIPTokenizer
    """A `CLIPTokenizer` of 77 tokens at most. It knows every byte, and the last letter of a word by its "</w>"."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    alphabet = [*CLIP_SPECIALS, *letters, *(letter + "</w>" for letter in letters)]
    settings: dict[str, Any] = {"model_max_length": CLIP_LENGTH}
    bare = CLIPTokenizer(vocab=_vocabulary(alphabet), merges=[], **settings)
    # Letters rather than words, so that the ending counts as part of the last one.
    spelt: list[Any] = [(*word[:-1], word[-1] + "</w>") for text in corpus for word in _words(bare, text)]
    merges: Any = byte_pair_merges(spelt, CLIP_MERGES)
    vocabulary = _vocabulary([*alphabet, *(left + right for left, right in merges)])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, **settings)


def _words(tokenizer: Any, text: str) -> list[str]:
    """The pieces that the tokenizer's class cuts `text` into before any merge, in its letters for bytes."""
    backend = tokenizer.backend_tokenizer
    normal = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def _byte_letters() -> list[str]:
    """The printable letter of each byte; the package names them in an order that changes from run to run."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _vocabulary(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
