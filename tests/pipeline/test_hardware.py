"""What the hardware group changes in torch."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from alignment.pipeline.hardware import set_up_torch


@pytest.fixture
def as_before():
    threads, cudnn = torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


@pytest.mark.parametrize("threads", [None, 1])
def test_threads_and_kernels(as_before, threads):
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.set_num_threads(2)
    set_up_torch(OmegaConf.create({"threads": threads}))
    assert torch.get_num_threads() == (threads or 2)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
