"""From a conversation to text and to the parts of it that are learnt from.

Templates come with models from strangers: transformers renders them in Jinja's immutable sandbox,
which a test holds it to.
"""

from __future__ import annotations

from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from alignment.data.chat_templates import TEMPLATES
from alignment.data.records import Message, Messages, PromptLike, RecordError
from alignment.utils.errors import ConfigError


@dataclass(frozen=True)
class Piece:
    """A stretch of a sequence's text, and whether it is the assistant's."""

    text: str
    scored: bool


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that cannot render chat messages.

    Raises:
        ConfigError: It has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "model.tokenizer.chat_template",
            got=None,
            expected="a chat template, because the data holds chat messages and the tokenizer brings none",
            hint=f"Set it to {', '.join(TEMPLATES)} (human_assistant suits a base model), or to a Jinja template",
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation_prompt: bool) -> str:
    """A conversation as text, by the tokenizer's own template.

    Raises:
        RecordError: The template refuses the conversation (an unknown role, two turns of one speaker).
    """
    try:
        text = tokenizer.apply_chat_template(
            [{"role": turn["role"], "content": turn["content"]} for turn in messages],
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except jinja2.TemplateError as error:
        raise RecordError("the chat template refuses the conversation", str(error)) from error
    assert isinstance(text, str)
    return text


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: PromptLike) -> str:
    """What the model sees before it answers."""
    return prompt if isinstance(prompt, str) else render(tokenizer, prompt, generation_prompt=True)


def completion_pieces(
    tokenizer: PreTrainedTokenizerBase, prompt: PromptLike, completion: PromptLike
) -> tuple[str, list[Piece]]:
    """The prompt's text, and the pieces that follow it.

    Args:
        tokenizer: Brings the template.
        prompt: Text or messages.
        completion: The answer's text, or the rest of the conversation from the first answer on.

    Returns:
        The prompt's text, and pieces which, joined to it, are the whole text. Text after the end of
        an answer's turn belongs to the next piece that is not scored.

    Raises:
        RecordError: The template changes what it rendered before when a turn is added. What the
            model would be trained on is then not what it sees when it answers.
    """
    if isinstance(prompt, str):
        assert isinstance(completion, str)
        return prompt, [Piece(completion, scored=True)]
    turns: Messages = [_answer(completion)] if isinstance(completion, str) else completion
    start = seen = render(tokenizer, prompt, generation_prompt=True)
    pieces: list[Piece] = []
    for number, turn in enumerate(turns):
        before = [*prompt, *turns[:number]]
        if turn["role"] == "assistant":
            opened = render(tokenizer, before, generation_prompt=True)
            pieces.append(Piece(_rest(opened, seen), scored=False))
            seen = render(tokenizer, [*before, turn], generation_prompt=False)
            pieces.append(Piece(_rest(seen, opened), scored=True))
    return start, [piece for piece in pieces if piece.text]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _rest(whole: str, beginning: str) -> str:
    if whole.startswith(beginning):
        return whole[len(beginning) :]
    raise RecordError(
        "the chat template does not keep prefixes",
        "adding a turn changes how the turns before it are rendered (some templates drop earlier reasoning); set "
        f"model.tokenizer.chat_template to one that keeps them, for example {' or '.join(TEMPLATES)}",
    )
