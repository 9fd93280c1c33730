"""A run that is resumed sees exactly the batches that an uninterrupted one would have seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from alignment.data.datamodule import DataModule
from alignment.types import Batch
from alignment.utils.errors import ConfigError


class Recorder(pl.LightningModule):
    """Trains one number and writes down what it saw."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[str, ...], int]] = []
        self.fail_at = fail_at

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.fail_at is not None and len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((self.trainer.current_epoch, batch.ids, batch_idx))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEvery(pl.Callback):
    """Saves after every optimiser step, and at each end of an epoch if asked to."""

    def __init__(self, folder: Path, *, epoch_ends: bool) -> None:
        self.folder, self.epoch_ends = folder, epoch_ends

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not self.epoch_ends:
            trainer.save_checkpoint(self.folder / f"{len(module.seen):03d}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.epoch_ends:
            trainer.save_checkpoint(self.folder / f"{len(module.seen):03d}.ckpt")


def fit(data: DataModule, *, callbacks: list[pl.Callback], ckpt: Path | None = None, **options: Any) -> Recorder:
    module = Recorder(options.pop("fail_at", None))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=data.accumulate(1),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 7}], ids=["epochs", "steps"])
@pytest.mark.parametrize("epoch_ends", [False, True], ids=["step", "epoch_end"])
def test_resume_from_every_checkpoint(
    make_module: Callable[..., DataModule],
    preference_rows: Any,
    tmp_path: Path,
    limits: dict[str, int],
    epoch_ends: bool,
) -> None:
    def data() -> DataModule:
        return make_module(preference_rows(11), validation_size=2)  # 3 steps of 2 micro-batches an epoch

    whole = fit(data(), callbacks=[SaveEvery(tmp_path, epoch_ends=epoch_ends)], **limits)
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert saved
    for path in saved:
        done = int(path.stem)
        rest = fit(data(), callbacks=[], ckpt=path, **limits)
        assert [ids for _, ids, _ in rest.seen] == [ids for _, ids, _ in whole.seen[done:]], path.stem


def test_resume_with_workers_counts_what_was_trained_on(
    make_module: Callable[..., DataModule], preference_rows: Any, tmp_path: Path
) -> None:
    def data() -> DataModule:
        return make_module(preference_rows(11), num_workers=2)

    whole = fit(data(), callbacks=[SaveEvery(tmp_path, epoch_ends=False)], max_epochs=2)
    rest = fit(data(), callbacks=[], ckpt=tmp_path / "008.ckpt", max_epochs=2)
    assert [ids for _, ids, _ in rest.seen] == [ids for _, ids, _ in whole.seen[8:]]


def test_interrupted_batch_is_trained_on_after_the_resume(
    make_module: Callable[..., DataModule], preference_rows: Any, tmp_path: Path
) -> None:
    class SaveOnException(pl.Callback):
        def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / "interrupted.ckpt")

    rows = preference_rows(11)
    whole = fit(make_module(rows), callbacks=[], max_epochs=1)
    with pytest.raises(SystemExit):
        fit(make_module(rows), callbacks=[SaveOnException()], max_epochs=1, fail_at=2)
    rest = fit(make_module(rows), callbacks=[], ckpt=tmp_path / "interrupted.ckpt", max_epochs=1)
    assert [ids for _, ids, _ in rest.seen] == [ids for _, ids, _ in whole.seen[2:]]


def test_loader_made_before_the_checkpoint_is_read(make_module: Callable[..., DataModule]) -> None:
    data = make_module()
    loader = data.train_dataloader()
    iterator = iter(loader)
    expected = [batch.ids for batch in make_module().train_dataloader()][3:]
    data.start_at(3, epoch=0)
    assert [batch.ids for batch in iterator] == expected


def test_epochs_follow_one_another_and_differ(make_module: Callable[..., DataModule]) -> None:
    loader = make_module().train_dataloader()
    first, second = [[batch.ids for batch in loader] for _ in range(2)]
    assert first != second
    again = make_module()
    again.start_at(0, epoch=1)
    assert [batch.ids for batch in again.train_dataloader()] == second
    assert sorted(set(sum(first, ()))) == sorted(set(sum(second, ())))


def test_unused_iterators_cost_nothing(make_module: Callable[..., DataModule]) -> None:
    loader = make_module().train_dataloader()
    expected = [batch.ids for batch in make_module().train_dataloader()]
    iter(loader), iter(loader)
    assert [batch.ids for batch in loader] == expected


@pytest.mark.parametrize("changes", [{"micro_batch_size": 4}, {"batch_size": 8}, {"limit": 3}, {"seed": 8}])
def test_another_cut_is_refused(make_module: Callable[..., DataModule], changes: dict[str, int]) -> None:
    data = make_module()
    next(iter(data.train_dataloader()))
    other = make_module(**changes)
    other.load_state_dict(data.state_dict())
    with pytest.raises(ConfigError, match="as when the checkpoint was saved"):
        other.train_dataloader()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 1])
def test_iterating_leaves_the_random_state_alone(
    make_module: Callable[..., DataModule], preference_rows: Any, split: str, workers: int
) -> None:
    data = make_module(preference_rows(11), validation_size=4, num_workers=workers)
    loader = getattr(data, f"{split}_dataloader")()
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    data.teardown("fit")
