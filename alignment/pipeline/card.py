"""The model card of an exported model."""

from __future__ import annotations

from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from alignment.models.backbone import auto_class
from alignment.utils.redact import redacted


def model_card(cfg: DictConfig, manifest: dict[str, Any]) -> str:
    """Returns the README.md that lies beside exported weights: what it is, what it was made from, what was measured.

    Args:
        cfg: The run's configuration.
        manifest: The run's manifest, complete but for its end.
    """
    metrics = manifest["metrics"]
    rows = "\n".join(f"| `{name}` | {value:.6g} |" for name, value in metrics.items() if _worth_showing(name))
    budget = "\n".join(f"| {name} | {value:,.0f} |" for name, value in manifest["budget"].items())
    start = manifest["model"]["source"]
    method = str(cfg.method._target_).rsplit(".", 1)[-1]
    auto = auto_class(get_class(cfg.method._target_).head).__name__
    return f"""---
library_name: transformers
tags: [alignment, {method.lower()}]
---

# {method} of {start}

Trained with `alignment` {manifest["versions"]["alignment"]} by the method **{method}**.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

## Made from

| what | which |
|---|---|
| starting model | {start} |
| its weights | `{manifest["model"]["weights_hash"]}` |
| data fingerprint | `{manifest["data"]["fingerprint"]}` |
| tokenizer | `{manifest["tokenizer_hash"]}` |
| chat template | `{manifest["template_hash"]}` |
| seed | {manifest["seed"]} |
| code | {_code(manifest)} |

## Measured

| metric | last value |
|---|---|
{rows}

## Budget

| what | how much |
|---|---|
{budget}

## Configuration

```yaml
{OmegaConf.to_yaml(redacted(cfg)).strip()}
```
"""


def _worth_showing(name: str) -> bool:
    return name.split("/")[0] in ("fresh", "val") or name == "train/loss/total"


def _code(manifest: dict[str, Any]) -> str:
    git = manifest["git"]
    if git is None:
        return f"alignment {manifest['versions']['alignment']}"
    return f"`{git['sha']}`{', with local changes' if git['dirty'] else ''}"
