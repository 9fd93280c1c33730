"""TRL's DPOTrainer, set to the mathematics of this project's DPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer


def dpo_config(folder: Path, **fields: Any) -> DPOConfig:
    """Returns TRL's settings for a run of one process on the CPU in fp32.

    TRL's own defaults would checkpoint activations, run in bf16, shuffle and save checkpoints; all of that is off. Its
    head is always fused and chunked; ``padding_free`` is accepted but switched off by TRL 1.16 itself.

    Args:
        folder: For whatever it writes.
        fields: Of ``DPOConfig``; they win over what is set here.
    """
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
        "train_sampling_strategy": "sequential",
        "warmup_steps": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_first_step": False,
        "average_tokens_across_devices": False,
        "dataloader_pin_memory": False,
        "seed": 1,
    }
    return DPOConfig(**(settings | fields))


def dpo_trainer(
    *,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Path,
    config: DPOConfig,
    reference: Any = None,
    callbacks: list[TrainerCallback] | None = None,
) -> DPOTrainer:
    """Builds the trainer on a file of pairs, which it tokenises itself.

    Args:
        model: A folder, or a model.
        tokenizer: Of the model.
        pairs: JSON lines with ``prompt``, ``chosen``, ``rejected``.
        config: From :func:`dpo_config`.
        reference: A model, or ``None`` for a second copy of the folder's weights.
        callbacks: TRL's.
    """
    cache = f"{config.output_dir}/datasets"
    data: Dataset = load_dataset("json", data_files=str(pairs), split="train", cache_dir=cache)
    return DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
