"""Keeps keys, tokens and passwords out of everything that is saved, logged or sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignment.utils.files import write_text_atomic

REDACTED = "<redacted>"

# A word of the key says it: api_key, hf_token, WANDB_API_KEY, clientSecret. "pad_token", "num_tokens" and
# "token_id" are no secrets, which is why "token" counts only after the name of something that issues one.
_SECRET_KEY = re.compile(
    r"password|passwd|passphrase|secret|credential|authori[sz]ation|private_?key|access_?key|api_?key"
    r"|(^|_)(auth|access|api|bearer|refresh|session|hub|hf|huggingface|wandb|github|gitlab|openai|anthropic|use_auth)"
    r"_?token$|^token$",
    re.IGNORECASE,
)
# The shapes in which common services issue their keys, wherever they stand in a text.
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}"
    r"|\b(?:gh[pousr]|glpat|github_pat)[_-][A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\bxox[baprs]-[A-Za-z0-9-]{10,}"
    r"|\bwandb_v1_[A-Za-z0-9_]{16,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/-]{16,}=*"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_ASSIGNMENT = re.compile(r"^(?P<key>[+~]*[\w.@/-]+)=(?P<value>.+)$", re.DOTALL)


def redact_text(text: str) -> str:
    """Replaces everything in a text that looks like a secret.

    >>> redact_text("login with hf_" + "a" * 30)
    'login with <redacted>'
    """
    return _SECRET_VALUE.sub(REDACTED, text)


def redact_override(override: str) -> str:
    """Redacts one argument of a command line, by its key or by its value.

    >>> redact_override("judge.api_key=abc")
    'judge.api_key=<redacted>'
    """
    found = _ASSIGNMENT.match(override)
    if found and _SECRET_KEY.search(found["key"].rpartition(".")[2]):
        return f"{found['key']}={REDACTED}"
    return redact_text(override)


def redact(value: Any) -> Any:
    """Returns plain data (mappings, lists, scalars) with its secrets replaced.

    >>> redact({"judge": {"api_key": "abc", "model": "m"}})
    {'judge': {'api_key': '<redacted>', 'model': 'm'}}
    """
    if isinstance(value, dict):
        return {key: _redact_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact_override(entry) if isinstance(entry, str) else redact(entry) for entry in value]
    return redact_text(value) if isinstance(value, str) else value


def redacted(cfg: DictConfig) -> DictConfig:
    """Returns a resolved copy of a configuration with its secrets replaced."""
    plain: dict[str, Any] = redact(OmegaConf.to_container(cfg, resolve=True))
    return OmegaConf.create(plain)


def save_config(cfg: DictConfig, path: Path) -> None:
    """Writes a configuration as YAML, resolved and without its secrets."""
    write_text_atomic(path, OmegaConf.to_yaml(redacted(cfg)))


def redact_file(path: Path) -> None:
    """Replaces the secrets in a YAML file that another program has written; nothing happens without the file."""
    if path.is_file():
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        write_text_atomic(path, OmegaConf.to_yaml(OmegaConf.create(redact(plain))))


def _redact_entry(key: str, value: Any) -> Any:
    # A mapping below a secret's name is looked into; a number or a flag there is no secret (use_auth_token: true).
    if _SECRET_KEY.search(key) and isinstance(value, str) and value:
        return REDACTED
    return redact(value)
