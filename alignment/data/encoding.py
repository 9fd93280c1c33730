"""Text to token ids: one beginning-of-sequence token, and exact borders between parts of a text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from alignment.data.records import RecordError

# Some tokenizers treat a text's first characters in a special way (SentencePiece adds a space). A
# text that is put behind an anchor is encoded as if in the middle; the anchor's tokens are cut off.
_ANCHORS = ("\n", ":", "a")


class Encoder:
    """Encodes many texts at once, and parts of texts behind one another.

    Args:
        tokenizer: Any tokenizer of transformers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.bos_id: int | None = tokenizer.bos_token_id  # type: ignore[assignment]
        self.eos_id: int = tokenizer.eos_token_id  # type: ignore[assignment]
        # does it begin every text with its BOS by itself? what it does at the end is not asked for
        self.adds_bos = self.bos_id is not None and tokenizer("a")["input_ids"][:1] == [self.bos_id]

    def encode(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Encodes whole texts, each with exactly one BOS at its head if the tokenizer uses one.

        A text that already begins with it (a chat template's) gets no second one, and one that
        begins with two (data that was rendered before) loses the second.
        """
        unique = list(dict.fromkeys(texts))
        plain = self.tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"] if unique else []
        return {text: self._one_bos(list(ids)) for text, ids in zip(unique, plain, strict=True)}

    def prompt(self, ids: list[int]) -> list[int]:
        """A prompt that has at least one token, for the first completion token to be predicted from.

        Raises:
            RecordError: It has none, and the tokenizer knows no BOS to put there.
        """
        if ids:
            return ids
        if self.bos_id is None:
            raise RecordError("empty prompt", "the tokenizer has no beginning-of-sequence token to start from")
        return [self.bos_id]

    def continuation(self, before: Sequence[int], piece: str, whole: Sequence[int]) -> tuple[list[int], bool]:
        """The tokens of a text's next piece.

        If the tokens of the whole begin with those before, the rest is taken. If not (a token
        straddles the border), the tokens before stay as they are, because they are what the model
        sees when it answers, and the piece is encoded so that all decodes to the same text.

        Args:
            before: Tokens of the text so far.
            piece: What follows.
            whole: Tokens of the text so far and the piece, encoded in one.

        Returns:
            The piece's tokens, and whether the border had to be repaired.

        Raises:
            RecordError: No encoding of the piece gives the same text.
        """
        if list(whole[: len(before)]) == list(before):
            return list(whole[len(before) :]), False
        want = self._decode(whole)
        for candidate in self._candidates(piece):
            if self._decode([*before, *candidate]) == want:
                return candidate, True
        raise RecordError(
            "prompt and completion cannot be told apart as tokens", f"at the border before {piece[:20]!r}"
        )

    def answer_length(self, ids: list[int]) -> int:
        """How many of an answer's tokens belong to it: up to its end-of-sequence token.

        A template may put white space behind that token; the model never has to write it.
        """
        if self.eos_id not in ids:
            return len(ids)
        end = len(ids) - ids[::-1].index(self.eos_id)
        return len(ids) if self._decode(ids[end:]).strip() else end

    def _one_bos(self, ids: list[int]) -> list[int]:
        if not self.adds_bos:
            return ids
        assert self.bos_id is not None
        end = next((place for place, item in enumerate(ids) if item != self.bos_id), len(ids))
        return [self.bos_id, *ids[end:]]

    def _candidates(self, piece: str) -> Iterable[list[int]]:
        yield self._plain(piece)
        for anchor in _ANCHORS:
            head, both = self._plain(anchor), self._plain(anchor + piece)
            if both[: len(head)] == head:
                yield both[len(head) :]
        for anchor in _ANCHORS:
            head = self._plain(anchor)
            yield [item for character in piece for item in self._plain(anchor + character)[len(head) :]]

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        # a tokenizer that composes characters does so across the border too; that is the same text
        return unicodedata.normalize("NFC", text)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a tokenizer by what it does to text: vocabulary, merges, rules, special tokens.

    The chat template is not part of it: it is used before.
    """
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        for state in ("padding", "truncation"):  # left behind by the last call
            rules.pop(state, None)
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([rules, special], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
