"""Chat templates: sandboxed, named, prefix-keeping (T5), and clear where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from alignment.data.chat import completion_pieces, render, require_template
from alignment.data.chat_templates import TEMPLATES, chat_template
from alignment.data.records import Message, RecordError
from alignment.data.schemas import parse_human_assistant
from alignment.utils.errors import ConfigError

CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye"},
]
# like the templates that drop the reasoning of earlier turns
FORGETFUL = (
    "{% for m in messages %}[{{ m.role }}]"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

Make = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture
def with_template(make_tokenizer: Make) -> Callable[[str], PreTrainedTokenizerFast]:
    return lambda template: make_tokenizer(
        eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATES.get(template, template)
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_shipped_templates_keep_prefixes(with_template: Callable[[str], PreTrainedTokenizerFast], name: str) -> None:
    tokenizer = with_template(name)
    start, pieces = completion_pieces(tokenizer, CHAT[:2], CHAT[2:])
    whole = render(tokenizer, CHAT, generation_prompt=False)
    assert start + "".join(piece.text for piece in pieces) == whole
    assert [piece.text.strip().removesuffix("<|im_end|>") for piece in pieces if piece.scored] == ["Hello", "Goodbye"]
    single, (piece,) = completion_pieces(tokenizer, CHAT[:4], "Goodbye")
    assert single + piece.text == whole
    assert single == render(tokenizer, CHAT[:4], generation_prompt=True)


def test_human_assistant_is_the_format_of_hh(with_template: Callable[[str], PreTrainedTokenizerFast]) -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: Goodbye"
    assert render(with_template("human_assistant"), parse_human_assistant(text), generation_prompt=False) == text


def test_template_that_forgets_is_refused(with_template: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = with_template(FORGETFUL)
    turns: list[Message] = [
        {"role": "assistant", "content": "<think>hm</think>Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Goodbye"},
    ]
    with pytest.raises(RecordError, match=r"does not keep prefixes.*model\.tokenizer\.chat_template"):
        completion_pieces(tokenizer, CHAT[1:2], turns)
    completion_pieces(tokenizer, CHAT[1:2], "<think>hm</think>Hello")  # one answer at the end is kept whole


def test_no_template(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>")
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.chat_template.*human_assistant"):
        require_template(tokenizer)


def test_template_that_refuses_a_conversation(with_template: Callable[[str], PreTrainedTokenizerFast]) -> None:
    tokenizer = with_template("{{ raise_exception('System role not supported') }}")
    with pytest.raises(RecordError, match="refuses the conversation: System role not supported"):
        render(tokenizer, CHAT, generation_prompt=True)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.append('x') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set _ = messages[0].update({'content': 'x'}) %}",
    ],
)
def test_templates_run_in_the_immutable_sandbox(
    with_template: Callable[[str], PreTrainedTokenizerFast], attack: str
) -> None:
    with pytest.raises(RecordError, match="refuses the conversation"):
        render(with_template(attack), CHAT, generation_prompt=True)


def test_the_sandbox_is_jinjas_own() -> None:
    environment = _compile_jinja_template("{{ messages }}").environment
    assert isinstance(environment, jinja2.sandbox.ImmutableSandboxedEnvironment)


def test_named_templates(tmp_path: Path) -> None:
    assert chat_template("chatml") == TEMPLATES["chatml"]
    assert chat_template("{{ messages }}") == "{{ messages }}"
    path = tmp_path / "my.jinja"
    path.write_text("{{ messages[0] }}")
    assert chat_template(str(path)) == "{{ messages[0] }}"
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.chat_template: got 'chatlm'.*did you mean 'chatml'"):
        chat_template("chatlm")
