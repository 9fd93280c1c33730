"""What the hardware group changes in torch itself, for every verb."""

from __future__ import annotations

import torch
from omegaconf import DictConfig


def set_up_torch(hardware: DictConfig) -> None:
    """Sets threads, and chooses among the attention kernels that ``sdpa`` has.

    From torch 2.11 on a Hopper or Blackwell GPU prefers cuDNN's, which makes a plan for each new shape: half a second
    forward and as much backward. Batches of other lengths, and each token that is written, have a new shape.

    Args:
        hardware: The group of the configuration.
    """
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)
