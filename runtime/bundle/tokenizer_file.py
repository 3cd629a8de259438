"""A policy's `tokenizer.json`: read, and checked against the vocabulary of the network that looks
its ids up.

Knows the file and the ids; how a prompt is put together is `preprocess.Prompter`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trimvla.runtime.errors import BundleError, ConfigError, TrimvlaError
from trimvla.runtime.text_files import read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHAT = "a tokenizer.json"
# any instruction: a tokenizer that gives nothing for it gives nothing for all
TRIAL = "pick up the red cube"


def load_tokenizer(path: Path, *, error: type[TrimvlaError] = BundleError) -> Tokenizer:
    """The tokenizer of a file as the `tokenizers` library writes it; `error` where it is none."""
    return parse_tokenizer(read_text(path, WHAT, error=error), path, error=error)


def parse_tokenizer(
    text: str, path: Path | str, *, error: type[TrimvlaError] = BundleError
) -> Tokenizer:
    """The tokenizer of a file's content; it neither cuts nor pads, which is left to the prompt's
    buckets.
    """
    from tokenizers import Tokenizer

    if not text.strip():
        raise error(f"{path}: expected {WHAT}, got an empty file")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as problem:  # the binding raises bare Exception
        raise error(f"{path}: no tokenizer: expected {WHAT}, got: {problem}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(
    tokenizer: Tokenizer,
    vocabulary: int,
    special: Iterable[int],
    path: Path | str,
    *,
    error: type[TrimvlaError] = ConfigError,
) -> None:
    """Refuse a tokenizer of another policy.

    Args:
        tokenizer: of the file `path`.
        vocabulary: rows of the network's embedding table; an id beyond them stops every inference.
        special: ids that are put around a prompt.
        path: the file, for the error's words.
        error: raised where an id lies beyond the vocabulary, or where the tokenizer knows no word.
    """
    words = {**tokenizer.get_vocab(with_added_tokens=True)}
    highest = max(words, key=lambda word: words[word], default=None)
    if highest is not None and words[highest] >= vocabulary:
        got = f"{words[highest]} for {highest[:40]!r}"
        raise error(
            f"{path}: expected ids below {vocabulary}, the policy's vocabulary, got {got}: of"
            " another policy?"
        )
    beyond = [index for index in special if not 0 <= index < vocabulary]
    if beyond:
        raise error(f"expected ids below {vocabulary} around the prompt, got {beyond}")
    if not tokenizer.encode(TRIAL, add_special_tokens=False).ids:
        raise error(f"{path}: expected {WHAT} that knows words, got no id for {TRIAL!r}")
