"""What says how much a state is worth: one Protocol, a class a strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Protocol

import torch
from torch import nn

from alignment.data.encoding import tokenizer_hash
from alignment.models.backbone import pretrained_like
from alignment.models.layout import check_layout
from alignment.models.logprob_model import BackboneModule, LogprobModel
from alignment.models.reading import values_at
from alignment.models.score_model import score_head
from alignment.types import Head, TokenBatch, Values
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from alignment.models.backbone import ModelSource


class Critic(Protocol):
    """A strategy for the values of states.

    Attributes:
        model: A backbone of its own, for the method to register and to train; ``None`` on the policy's trunk.
        lr: Its learning rate; ``None`` is the policy's.
    """

    model: StateValues | None
    lr: float | None


class StateValues(BackboneModule):
    """Wraps a sequence classifier with one output: read before each scored token, and behind the last."""

    def forward(self, batch: TokenBatch) -> Values:
        """Returns values without a unit, fp32; each is seen from the state before its token."""
        return values_at(self.last_hidden(batch), batch, head=score_head(self.hf_model))


class SeparateCritic:
    """A second backbone with a head for values. Costs its memory, its training and a forward and backward pass a step.

    Args:
        policy: Whose start it shares without a path of its own.
        source: Where the policy comes from.
        path: A reward model to begin with, whose tokenizer is the policy's; ``None`` begins with the policy's start
            and a head of zeros.
        revision: The hub's commit, branch or tag of that model.
        lr: Learning rate; ``None`` is the policy's.

    Raises:
        ConfigError: The reward model has another tokenizer.
    """

    def __init__(
        self,
        *,
        policy: LogprobModel,
        source: ModelSource,
        path: str | None,
        revision: str | None,
        lr: Annotated[float, "(0, inf)"] | None,
    ) -> None:
        own = source if path is None else pretrained_like(source, path=path, revision=revision)
        if path is not None and tokenizer_hash(own.tokenizer()) != tokenizer_hash(source.tokenizer()):
            raise ConfigError(
                "critic.path",
                got=path,
                expected="a reward model with the policy's tokenizer",
                hint="it reads the policy's very tokens: train one from the policy's start, or set critic.path=null",
            )
        model = own.load(Head.SCORE)
        if not any(name.endswith("ForSequenceClassification") for name in own.config().architectures or ()):
            nn.init.zeros_(score_head(model).weight)
        self.model: StateValues | None = StateValues(model, layout=policy.layout, kernel=policy.kernel).eval()
        check_layout(self.model)
        self.model.train()
        self.lr = lr


class ValueHead:
    """A linear layer on the policy's own trunk. Costs next to nothing; its loss trains the trunk too.

    Args:
        policy: Gets the layer, of zeros.
        source: Not used; every critic is given it.
        lr: Learning rate of the layer; ``None`` is the policy's.
    """

    def __init__(self, *, policy: LogprobModel, source: ModelSource, lr: Annotated[float, "(0, inf)"] | None) -> None:
        hidden = policy.hf_model.config.get_text_config().hidden_size
        parameter = next(policy.parameters())
        policy.value_head = nn.Linear(hidden, 1, device=parameter.device, dtype=torch.float32)
        nn.init.zeros_(policy.value_head.weight)
        nn.init.zeros_(policy.value_head.bias)
        self.model: StateValues | None = None
        self.lr = lr
