"""Chat templates for tokenizers that have none, by name.

All keep prefixes: what a conversation renders to begins with what its first turns render to.
"""

from __future__ import annotations

from pathlib import Path

from alignment.utils.errors import ConfigError, nearest

TEMPLATES: dict[str, str] = {
    # <|im_start|>role ... <|im_end|>: Qwen, SmolLM2 and many others
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # the format of HH-RLHF's files; plain text, so any base model has tokens for it
    "human_assistant": (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '\\n\\nHuman: ' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + message['content'] }}"
        "{% else %}{{ '\\n\\n' + message['role'] | capitalize + ': ' + message['content'] }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
    ),
    # nothing but the words: a model that only continues text sees no marks of a chat
    "plain": (
        "{% for message in messages %}"
        "{{ message['content'] }}{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
        "{% endfor %}"
    ),
}
"""By the name that ``model.tokenizer.chat_template`` may give."""


def chat_template(value: str) -> str:
    """The Jinja text that a configuration's value means.

    Args:
        value: A name of :data:`TEMPLATES`, the Jinja text itself, or the path of a file that holds it.

    Raises:
        ConfigError: Neither a known name nor a file.
    """
    if value in TEMPLATES:
        return TEMPLATES[value]
    if "{" in value:
        return value
    if Path(value).is_file():
        return Path(value).read_text("utf-8")
    raise ConfigError(
        "model.tokenizer.chat_template",
        got=value,
        expected=f"one of {', '.join(TEMPLATES)}, a file, or a Jinja template",
        hint=nearest(value, TEMPLATES),
    )
