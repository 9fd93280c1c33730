"""A model and prompts for the verbs that only read weights: generate, evaluate and label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from alignment.models.kernels import kernel_of
from alignment.models.layout import check_layout, choose_layout
from alignment.models.logprob_model import LogprobModel, check_head
from alignment.pipeline.hardware import set_up_torch
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.models.backbone import ModelSource


@dataclass(frozen=True)
class Loaded:
    """A frozen model with its tokenizer.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: The model's own.
        source: Where the weights came from.
    """

    model: LogprobModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource

    def describe(self) -> dict[str, Any]:
        """Returns what a manifest says about the model."""
        return {"source": self.source.describe(), "weights_hash": self.source.weights_hash()}


def load(model: DictConfig, hardware: DictConfig) -> Loaded:
    """Loads a model onto the one device that the hardware group names.

    Raises:
        ConfigError: The hardware has several devices, or one that is not there.
    """
    device = one_device(hardware)
    set_up_torch(hardware)
    source: ModelSource = instantiate(model, _convert_="all")
    tokenizer = source.tokenizer()
    layout, _ = choose_layout(source.layout, config=source.config(), attention=source.attention)
    scored = LogprobModel(
        source.load(), chunk_tokens=source.chunk_tokens, layout=layout, kernel=kernel_of(source.attention)
    )
    scored.requires_grad_(False).eval().to(device)
    check_head(scored)
    check_layout(scored)
    return Loaded(scored, tokenizer, source)


def start_model(cfg: DictConfig) -> DictConfig:
    """Returns the starting model's configuration: the model's own, from another path and revision.

    Raises:
        ConfigError: The model has no path that could be another.
    """
    if "path" not in cfg.model:
        raise ConfigError(
            "start.path",
            got=cfg.start.path,
            expected="null, because the model has no path either",
            hint="give both: model=pretrained model.path=... start.path=...",
        )
    merged = OmegaConf.merge(cfg.model, cfg.start)
    assert isinstance(merged, DictConfig)
    return merged


def one_device(hardware: DictConfig) -> torch.device:
    """Returns the device that a hardware group means.

    Raises:
        ConfigError: It means several, or one that is not there.
    """
    chosen = [0] if hardware.devices == 1 else hardware.devices
    if hardware.num_nodes != 1 or isinstance(chosen, int) or len(chosen) != 1:
        raise ConfigError(
            "hardware.devices",
            got=f"{hardware.devices} on {hardware.num_nodes} nodes",
            expected="1, or a list of one",
            hint="this verb runs in one process: use hardware=cpu or hardware=single_gpu",
        )
    if hardware.accelerator == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "hardware.accelerator", got=hardware.accelerator, expected="cpu: there is no CUDA device on this machine"
        )
    return torch.device("cuda", chosen[0])


@contextmanager
def precision(hardware: DictConfig) -> Iterator[None]:
    """Runs what is inside in the precision that a hardware group names."""
    device = one_device(hardware).type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=hardware.precision == "bf16-mixed"):
        yield
