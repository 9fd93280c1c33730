"""Roll-outs from disk: a run's own completions once more, with other mathematics and without a model writing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.models.logprob_model import LogprobModel
from alignment.rollout.engine import TokenPrompt
from alignment.types import Rollout, Sampling
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LEFT_OUT = "left_out"
"""Below a run's roll-outs: those that it did not train on."""


class ReplayEngine:
    """Gives the completions that an online run has kept, in place of sampling.

    The run that replays must ask for what the other one wrote: the same data, order, seeds and group size. With
    everything else the same too it is the same run, bit by bit. With another loss or learning rate the completions are
    not its own, and it learns from them as if they were, unless ``method.rollouts.importance_cap`` weighs them.

    Args:
        folder: The other run's ``rollouts``.
        model: Not used.
        tokenizer: Not used.

    Raises:
        ConfigError: There are no roll-outs in the folder.
    """

    def __init__(self, *, folder: str, model: LogprobModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder = Path(folder).expanduser()
        folders = (self.folder, self.folder / LEFT_OUT)
        self._files = sorted((path for each in folders for path in each.glob("[0-9]*.parquet")), key=lambda p: p.name)
        self._known: dict[tuple[int, str, int], Rollout] = {}
        if not self._files:
            raise ConfigError(
                "rollout.engine.folder",
                got=folder,
                expected="the folder rollouts of an online run, with files 000000.parquet, ...",
            )

    def generate(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Rollout]:
        """Returns ``sampling.num_samples`` completions of each prompt: prompt by prompt, sample by sample.

        Raises:
            UserError: One was never written.
        """
        keys = [(sampling.seed, prompt.id, sample) for prompt in prompts for sample in range(sampling.num_samples)]
        for key in keys:
            while key not in self._known:
                if not self._files:
                    raise UserError(
                        f"{self.folder} has no completion {key[2]} of prompt {key[1]} under the seed {key[0]}: replay "
                        "with the data, seed, data.batch_size and method.rollouts of the run that wrote it"
                    )
                self._read(self._files.pop(0))
        return [self._known[key] for key in keys]

    def _read(self, path: Path) -> None:
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        for row in rows:
            rollout = Rollout(
                prompt_id=row["prompt_id"],
                prompt=json.loads(row["prompt"]),
                prompt_ids=tuple(row["prompt_ids"]),
                completion_ids=tuple(row["completion_ids"]),
                completion=row["completion"],
                finish_reason=row["finish_reason"],
                sample=row["sample"],
                answer=json.loads(row["answer"]),
                token_logps=tuple(row["token_logps"]),
                seed=row["seed"],
            )
            self._known[row["seed"], row["prompt_id"], row["sample"]] = rollout
