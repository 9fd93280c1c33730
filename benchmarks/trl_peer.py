"""TRL's trainers, set to the mathematics of this project's methods."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback


@dataclass(frozen=True)
class Peer:
    """A trainer of TRL's.

    Attributes:
        module: Where ``{name}Trainer`` and ``{name}Config`` are.
        sequences: For each sequence of a tokenised row the columns that it is made of, one after another.
    """

    module: str
    sequences: tuple[tuple[str, ...], ...]


PEERS = {
    "DPO": Peer("trl", (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids"))),
    "KTO": Peer("trl", (("prompt_ids", "completion_ids"), ("prompt_ids", "KL_completion_ids"))),
    "ORPO": Peer("trl.experimental.orpo", (("chosen_input_ids",), ("rejected_input_ids",))),
    "CPO": Peer("trl.experimental.cpo", (("chosen_input_ids",), ("rejected_input_ids",))),
    "Reward": Peer("trl", (("chosen_ids",), ("rejected_ids",))),
    "SFT": Peer("trl", (("input_ids",),)),
    "GRPO": Peer("trl", ()),
}


def peer_config(name: str, folder: Path, **fields: Any) -> Any:
    """Returns TRL's settings for a run of one process, on the CPU in fp32 if nothing else is said.

    TRL's own defaults would checkpoint activations, run in bf16, shuffle and save checkpoints; all of that is off. The
    head of its DPO, KTO and SFT is always fused and chunked; that of its ORPO and CPO never is.

    Args:
        name: Of the trainer, a key of :data:`PEERS`.
        folder: For whatever it writes.
        fields: Of its configuration; they win over what is set here.
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
    return getattr(importlib.import_module(PEERS[name].module), f"{name}Config")(**(settings | fields))


def peer_trainer(name: str, *, tokenizer: PreTrainedTokenizerBase, records: Path, config: Any, **fields: Any) -> Any:
    """Builds the trainer on a file of records, which it tokenises itself.

    Args:
        name: Of the trainer.
        tokenizer: Of the model.
        records: JSON lines, as the trainer wants them.
        config: From :func:`peer_config`.
        fields: What else it takes: ``model``, a folder or a model, and for example ``callbacks``.
    """
    cache = f"{config.output_dir}/datasets"
    data: Dataset = load_dataset("json", data_files=str(records), split="train", cache_dir=cache)
    trainer: Any = getattr(importlib.import_module(PEERS[name].module), f"{name}Trainer")
    return trainer(args=config, train_dataset=data, processing_class=tokenizer, **fields)


def score_completions_only() -> None:
    """Has the head of TRL's DPO, KTO, SFT and GRPO score completions only on a CPU, as it does on a GPU.

    Its kernels ask elsewhere whether there is Triton; the function that is replaced decides which positions they get.
    """
    import trl.trainer.utils as its_head

    its_head._use_triton = lambda _device: True  # type: ignore[assignment]


def pair_as(trainer: Any, partners: list[int]) -> None:
    """Puts other completions behind the prompts on which TRL's KTO estimates its baseline.

    Its own are those of the records before them in the batch.

    Args:
        trainer: TRL's.
        partners: For each record the one whose completion it takes.
    """
    completions = trainer.train_dataset["completion_ids"]
    crossed = [completions[partner] for partner in partners]
    without = trainer.train_dataset.remove_columns("KL_completion_ids")
    trainer.train_dataset = without.add_column("KL_completion_ids", crossed)


def steps_of(name: str, trainer: Any, batch: int) -> Iterator[list[list[int]]]:
    """Yields the sequences of each step as the trainer has tokenised them.

    Args:
        name: Of the trainer.
        trainer: TRL's.
        batch: Records a step.
    """
    rows = list(trainer.train_dataset)
    for start in range(0, len(rows), batch):
        yield [
            [token for column in columns for token in row[column]]
            for row in rows[start : start + batch]
            for columns in PEERS[name].sequences
        ]


def dpo_config(folder: Path, **fields: Any) -> Any:
    """Returns the settings of TRL's DPO; see :func:`peer_config`."""
    return peer_config("DPO", folder, **fields)


def dpo_trainer(
    *,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Path,
    config: Any,
    reference: Any = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Any:
    """Builds TRL's DPOTrainer; see :func:`peer_trainer`.

    Args:
        model: A folder, or a model.
        tokenizer: Of the model.
        pairs: JSON lines with ``prompt``, ``chosen``, ``rejected``.
        config: From :func:`dpo_config`.
        reference: A model, or ``None`` for a second copy of the folder's weights.
        callbacks: TRL's.
    """
    return peer_trainer(
        "DPO",
        tokenizer=tokenizer,
        records=pairs,
        config=config,
        model=model,
        ref_model=reference,
        callbacks=callbacks,
    )
