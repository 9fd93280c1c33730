"""What holds a policy near its reference while it learns from its own completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from alignment.utils.errors import ConfigError

Place = Literal["reward", "loss"]
Estimator = Literal["k1", "k2", "k3", "k3_importance"]

_ALLOWED: dict[Place, tuple[Estimator, ...]] = {"reward": ("k1",), "loss": ("k2", "k3", "k3_importance")}
#: Ziegler et al. 2019: the largest error that one update of the coefficient answers to.
_LARGEST_ERROR = 0.2
_NONE = "Without a penalty there is nothing to load a reference for: method/kl=none reference=none"


class KLPenalty:
    """The KL to the reference, with a coefficient that is fixed or follows a target.

    In the reward, k1 of each token is taken off that token's reward: its gradient is reverse KL's, because the policy
    gradient differentiates the sampling. In the loss a sample's estimator is differentiated itself: k2 gives reverse
    KL's gradient, a bare k3 forward KL's, and k3 times the importance ratio reverse KL's; k1 gives none at all in
    expectation and is refused.

    With a target the coefficient follows Ziegler et al. 2019, arXiv 1909.08593, section 2.2: after each batch of n
    completions it is multiplied by 1 + clip((KL - target) / target, -0.2, 0.2) * n / horizon.

    Args:
        coefficient: Multiplies the penalty; where there is a target, at the start.
        place: Where the penalty goes.
        estimator: Of the KL of a token.
        target_nats: Sequence KL to hold, in nats; ``None`` keeps the coefficient.
        horizon: Completions in which an error of 1 would double the coefficient; ``None`` without a target.

    Raises:
        ConfigError: The estimator has no meaning in its place, or a target and a horizon do not go together.
    """

    def __init__(
        self,
        *,
        coefficient: Annotated[float, "(0, inf)", _NONE],
        place: Place,
        estimator: Estimator,
        target_nats: Annotated[float, "(0, inf)"] | None,
        horizon: Annotated[int, "[1, inf)"] | None,
    ) -> None:
        if estimator not in _ALLOWED[place]:
            hint = (
                "the expected gradient of k1 as a loss is zero: nothing would be held back"
                if estimator == "k1"
                else "the policy gradient differentiates the sampling already, and needs the log-ratio itself"
            )
            raise ConfigError(
                "method.kl.estimator",
                got=estimator,
                expected=f"{' or '.join(_ALLOWED[place])} for method.kl.place={place}",
                hint=hint,
            )
        if (target_nats is None) != (horizon is None):
            raise ConfigError(
                "method.kl.horizon",
                got=horizon,
                expected="null without method.kl.target_nats" if target_nats is None else "10000 completions or so",
            )
        self.coefficient = coefficient
        self.place: Place = place
        self.estimator: Estimator = estimator
        self.target_nats, self.horizon = target_nats, horizon

    def check_batch(self, num_sequences: int) -> None:
        """Refuses batches of so many completions that one could turn the coefficient's sign.

        Raises:
            ConfigError: The horizon is too short for them.
        """
        largest = _LARGEST_ERROR * num_sequences
        if self.horizon is not None and self.horizon <= largest:
            raise ConfigError(
                "method.kl.horizon",
                got=self.horizon,
                expected=f"more than {largest:g} with {num_sequences} completions a batch",
                hint=f"One batch may change the coefficient by {_LARGEST_ERROR:g} times completions / horizon",
            )

    def after_batch(self, *, sequence_kl_nats: float, num_sequences: int) -> None:
        """Adapts the coefficient to the KL of a batch of completions, where there is a target."""
        if self.target_nats is None or self.horizon is None:
            return
        error = (sequence_kl_nats - self.target_nats) / self.target_nats
        error = min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.coefficient *= 1 + error * num_sequences / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """Returns the present coefficient."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it; a fixed one stays what the configuration says."""
        if self.target_nats is not None:
            self.coefficient = state["coefficient"]


def check_reference(*, is_compared: bool, has_reference: bool) -> None:
    """Refuses a reference that nothing takes, and a method that has none to compare with.

    Args:
        is_compared: Whether the method takes the reference's log-probs anywhere.
        has_reference: Whether one is configured.

    Raises:
        ConfigError: Naming what to choose.
    """
    if is_compared and not has_reference:
        hint = "set reference=frozen_copy, adapter_off (with adapter=lora), or method/kl=none"
        raise ConfigError("reference", got="none", expected="a reference for method.kl", hint=hint)
    if has_reference and not is_compared:
        raise ConfigError(
            "reference",
            got="a reference",
            expected="none, because method.kl is null and nothing would take it",
            hint="set reference=none, or method/kl=loss or reward",
        )
