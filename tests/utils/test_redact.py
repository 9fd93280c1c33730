"""Trap S5: keys and tokens are in nothing that is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignment.utils.redact import REDACTED, redact, redact_file, redact_override, redact_text, redacted, save_config

# Taken apart, so that no scanner takes them for real ones.
TOKENS = [
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345",
    "sk-" + "proj-aBcDeFgHiJkLmNoPqRsTuVwXyZ",
    "ghp_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789",
    "github_pat_" + "11AAAAAAA0aBcDeFgHiJ_kLmNoPqRsT",
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstu",
    "xoxb-" + "123456789012-abcdefghijkl",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "Bearer " + "abcdefghijklmnopqrstuvwxyz",
]
SECRET_KEYS = [
    "api_key",
    "WANDB_API_KEY",
    "apiKey",
    "token",
    "hf_token",
    "auth_token",
    "access_token",
    "password",
    "db_password",
    "client_secret",
    "aws_secret_access_key",
    "private_key",
    "Authorization",
    "credentials",
]
OPEN_KEYS = [
    "pad_token",
    "eos_token",
    "bos_token",
    "tokens",
    "num_tokens",
    "max_new_tokens",
    "target_tokens",
    "chunk_tokens",
    "tokenizer",
    "key",
    "monitor",
    "path",
]


@pytest.mark.parametrize("token", TOKENS)
def test_secret_is_known_by_its_shape(token: str) -> None:
    assert token.split()[-1] not in redact_text(f"before {token} behind")
    assert redact_text(f"before {token} behind").startswith("before ")


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_secret_is_known_by_its_key(key: str) -> None:
    assert redact({"a": [{key: "hunter2"}]}) == {"a": [{key: REDACTED}]}
    assert redact_override(f"+judge.{key}=hunter2") == f"+judge.{key}={REDACTED}"


@pytest.mark.parametrize("key", OPEN_KEYS)
def test_what_is_no_secret_stays(key: str) -> None:
    assert redact({key: "<s>", "n": {key: 3}}) == {key: "<s>", "n": {key: 3}}


def test_password_in_an_address() -> None:
    assert redact_text("https://user:hunter2@host/x") == f"https://{REDACTED}@host/x"
    assert redact_text("https://host:8080/x@y") == "https://host:8080/x@y"


def test_private_key_over_several_lines() -> None:
    text = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\n-----END RSA PRIVATE KEY-----\nrest"
    assert redact_text(text) == f"{REDACTED}\nrest"


def test_values_of_other_kinds_stay() -> None:
    plain = {"use_auth_token": True, "token": None, "api_key": "", "lr": 1e-6, "betas": [0.9, 0.95]}
    assert redact(plain) == plain


def test_saved_configuration_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", "hunter2")
    cfg = OmegaConf.create(
        {"judge": {"api_key": "${oc.env:MY_JUDGE_KEY}", "model": "m"}, "url": f"x?t={TOKENS[0]}", "list": [TOKENS[1]]}
    )
    save_config(cfg, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "hunter2" not in text
    assert not any(token in text for token in TOKENS)
    assert OmegaConf.load(tmp_path / "config.yaml").judge.model == "m"
    assert cfg.judge.api_key == "hunter2", "the running configuration keeps it"
    assert redacted(cfg).judge.api_key == REDACTED


def test_file_of_another_program_is_redacted_in_place(tmp_path: Path) -> None:
    path = tmp_path / "multirun.yaml"
    path.write_text("hydra:\n  overrides:\n    task: ['+judge.api_key=hunter2']\nname: ${hydra.job.num}\n")
    redact_file(path)
    assert "hunter2" not in path.read_text()
    assert "${hydra.job.num}" in path.read_text()
    redact_file(tmp_path / "nothing.yaml")
