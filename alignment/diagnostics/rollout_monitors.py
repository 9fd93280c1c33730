"""Monitors of what a policy writes: known ways in which reinforcement learning goes wrong.

:class:`KLRunaway` looks at fresh samples too, and so serves offline methods as well.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import lightning.pytorch as pl

from alignment.diagnostics.monitors import Monitor

Positive = Annotated[float, "(0, inf)"]
Share = Annotated[float, "(0, 1)"]


class SamplerMismatch(Monitor):
    """Warns when the engine that writes and the policy that trains do not agree on a token's probability (T18).

    Args:
        max_ratio: Of the mean of exp |difference of log-probs|; ``None`` is 1.02 in fp32 and 1.05 in half precision,
            what rounding makes.
        folder: The run's folder.
    """

    name = "sampler_mismatch"

    def __init__(self, *, max_ratio: Annotated[float, "(1, inf)"] | None, folder: Path) -> None:
        super().__init__(folder=folder)
        self.max_ratio = max_ratio

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the limit where none is given."""
        if self.max_ratio is None:
            self.max_ratio = 1.05 if "16" in str(trainer.precision) else 1.02

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Looks at the last step's completions."""
        ratio = metrics.get("train/policy/sampler_mismatch")
        if ratio is None or self.max_ratio is None or ratio <= self.max_ratio:
            return None
        words = (
            f"probabilities of the same tokens differ by a factor of {ratio:.3f} on average between the engine that "
            "drew them and the policy that learns from them: importance ratios are wrong by as much. Check that the "
            "engine has the policy's weights, its temperature and its precision"
        )
        return words, {"sampler_mismatch": ratio}


class KLRunaway(Monitor):
    """Warns when the policy has gone far from its reference.

    Args:
        max_nats: Sequence KL(policy || reference) that is tolerated.
        folder: The run's folder.
    """

    name = "kl_runaway"

    def __init__(self, *, max_nats: Positive, folder: Path) -> None:
        super().__init__(folder=folder)
        self.max_nats = max_nats

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Looks at the completions that are trained on, else at fresh samples."""
        names = ("train/kl/policy_reference_nats", "fresh/kl/policy_start_nats")
        found = next((metrics[name] for name in names if name in metrics), None)
        if found is None or found <= self.max_nats:
            return None
        words = (
            f"the policy is {found:.1f} nats a completion from its reference (more than {self.max_nats:g}). Raise "
            "method.kl.coefficient (method.beta where the method has one), lower optim.lr, or stop earlier"
        )
        return words, {"kl_nats": found}


_SELF_BLEU = "fresh/diversity/self_bleu"


class ModeCollapse(Monitor):
    """Warns when the policy writes the same things over and over.

    Args:
        min_entropy_share: Part of the first steps' entropy a token that must be left.
        min_distinct_share: Part of the start's different bigrams of fresh samples that must be left.
        min_unlike_share: The same of what self-BLEU leaves to 1: how unlike each other fresh samples are.
        folder: The run's folder.
    """

    name = "mode_collapse"

    def __init__(
        self, *, min_entropy_share: Share, min_distinct_share: Share, min_unlike_share: Share, folder: Path
    ) -> None:
        super().__init__(folder=folder)
        self.shares = {
            "train/policy/entropy_nats": min_entropy_share,
            "fresh/diversity/distinct_2": min_distinct_share,
            _SELF_BLEU: min_unlike_share,
        }
        self.first: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what was measured first too."""
        return super().state_dict() | {"first": dict(self.first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.first = dict(state_dict["first"])

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Compares entropy and diversity with the first ones; of a method that writes what it learns from."""
        if "train/advantage/used_groups" not in metrics:
            return None
        for name, share in self.shares.items():
            now = metrics.get(name)
            if now is None:
                continue
            first = self.first.setdefault(name, now)
            is_likeness = name == _SELF_BLEU
            left, whole = (1 - now, 1 - first) if is_likeness else (now, first)
            if left < share * whole:
                moved = "risen" if is_likeness else "fallen"
                words = (
                    f"{name} has {moved} from {first:.3g} to {now:.3g}: completions become alike, and there is nothing "
                    "left to compare. Raise method.kl.coefficient, lower optim.lr, or stop earlier"
                )
                return words, {"first": first, "now": now}
        return None


class RewardHacking(Monitor):
    """Warns when the reward that is trained on rises while another that is not falls (Gao et al. 2022, 2210.10760).

    The guard is a reward of fresh samples on held-out prompts: give ``callbacks.fresh_samples.reward`` one that the
    policy is not trained on. With the same reward the guard can only tell training prompts from held-out ones.

    Args:
        guard: Name of the guard's metric.
        max_fall: Fall of the guard below its best, as a share of what it had gained, that is tolerated.
        folder: The run's folder.
    """

    name = "reward_hacking"

    def __init__(self, *, guard: str, max_fall: Positive, folder: Path) -> None:
        super().__init__(folder=folder)
        self.guard = guard
        self.max_fall = max_fall
        self.recent: deque[float] = deque(maxlen=8)
        self.seen: list[tuple[float, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns proxy and guard at each measurement too."""
        return super().state_dict() | {"seen": [list(pair) for pair in self.seen], "recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.seen = [(proxy, guard) for proxy, guard in state_dict["seen"]]
        self.recent = deque(state_dict["recent"], maxlen=self.recent.maxlen)

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Compares proxy and guard with what they were when the guard was at its best."""
        proxy, guard = metrics.get("train/reward/total"), metrics.get(self.guard)
        if proxy is None:
            return None
        if not self.recent or self.recent[-1] != proxy:
            self.recent.append(proxy)
        if guard is None:
            return None
        if not self.seen or self.seen[-1][1] != guard:
            self.seen.append((fmean(self.recent), guard))
        first, best, last = self.seen[0], max(self.seen, key=lambda pair: pair[1]), self.seen[-1]
        fell = best[1] - last[1]
        if last[0] <= best[0] or fell <= self.max_fall * max(best[1] - first[1], 1e-9):
            return None
        words = (
            f"the reward that is trained on rose from {best[0]:.3g} to {last[0]:.3g} while {self.guard} fell from "
            f"{best[1]:.3g} to {last[1]:.3g}: the policy has found what the reward does not see. Take the checkpoint "
            "with the best guard (callbacks.checkpoint.monitor), raise method.kl.coefficient, or mend the reward"
        )
        return words, {"proxy": last[0], "proxy_at_best": best[0], "guard": last[1], "best_guard": best[1]}
