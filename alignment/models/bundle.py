"""The models of a run: built once, from the roles that a method declares and no others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from alignment.data.encoding import tokenizer_hash
from alignment.data.tokenizer import with_own_pad_token
from alignment.models.adapters import adapter_for, apply_adapter
from alignment.models.critic import Critic
from alignment.models.kernels import Kernel, kernel_of
from alignment.models.layout import check_layout, choose_layout
from alignment.models.logprob_model import LOGPROB_PATH_VERSION, LogprobModel, check_head
from alignment.models.references import Reference
from alignment.models.score_model import SequenceScorer, StepScorer, check_score_head
from alignment.models.sharding import shard
from alignment.types import Head, Role
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

    from alignment.data.datamodule import DataModule
    from alignment.models.backbone import ModelSource

logger = logging.getLogger(__name__)

TrainedModel = LogprobModel | SequenceScorer | StepScorer


class ModelBundle:
    """Holds the model that trains and what it is compared with.

    The trained model is registered as a module by the method. Frozen models are reachable from here only, outside
    the module tree: then optimiser and checkpoint hold exactly what trains, on one process, DDP and FSDP2.

    Args:
        source: Where the starting weights come from.
        adapter: A peft configuration, or ``None`` to train every weight.
        reference: Builds the reference strategy, or ``None``.
        seed: Seeds an adapter's weights, and a head that judges.
        head: What sits on the trained model's trunk.
        critic: Builds the critic, or ``None``.

    Attributes:
        tokenizer: The trained model's.
        layout: How the models' batches are laid out.
        kernel: What computes the attention of several sequences in one row.
        why_layout: In words.
        trained: Set by :meth:`build`.
        reference: Set by :meth:`build` when one is configured.
        critic: The same.
        loaded_models: How many sets of weights are in memory.
    """

    def __init__(
        self,
        *,
        source: ModelSource,
        adapter: LoraConfig | None,
        reference: Callable[..., Reference] | None,
        seed: int,
        head: Head = Head.LANGUAGE,
        critic: Callable[..., Critic] | None = None,
    ) -> None:
        self.source = source
        self.adapter = adapter
        self.head = head
        self.tokenizer: PreTrainedTokenizerBase = source.tokenizer()
        if head is not Head.LANGUAGE:
            self.tokenizer = with_own_pad_token(self.tokenizer)
        self.trained: TrainedModel | None = None
        self.reference: Reference | None = None
        self.critic: Critic | None = None
        self.loaded_models = 0
        self.layout, self.why_layout = choose_layout(source.layout, config=source.config(), attention=source.attention)
        logger.info("layout %s: %s", self.layout, self.why_layout)
        self.kernel: Kernel = kernel_of(source.attention)
        if source.compile and self.kernel != "sdpa":
            raise ConfigError(
                "model.compile",
                got=True,
                expected=f"false with model.attention={source.attention}",
                hint="that kernel is compiled by itself",
            )
        self._build_reference, self._build_critic = reference, critic
        self._seed = seed

    def build(
        self, roles: Collection[Role], *, optional: Collection[Role] = (), mesh: DeviceMesh | None = None
    ) -> TrainedModel:
        """Loads what the roles need; a second call returns what is there.

        Args:
            roles: The method's.
            optional: Those that it can do without: loaded where they are configured.
            mesh: Data-parallel mesh to shard over, or ``None`` to keep models whole.

        Returns:
            The trained model, for the method to register.

        Raises:
            ConfigError: If a reference is needed and none configured, or the other way round.
        """
        if self.trained is not None:
            return self.trained
        self._check_reference(roles, optional)
        trained = self._load_trained()
        if self._build_reference is not None:
            self.reference = self._build_reference(policy=trained, load_frozen=self.load_start)
            if mesh is not None and self.reference.frozen is not None:
                shard(self.reference.frozen, mesh)
        if self._build_critic is not None:
            self._add_critic(self._build_critic, trained, mesh)
        if self.source.compile:
            trained.hf_model.base_model.compile(dynamic=True)
        self.trained = trained if mesh is None else shard(trained, mesh)
        return self.trained

    def _add_critic(self, build: Callable[..., Critic], policy: TrainedModel, mesh: DeviceMesh | None) -> None:
        self.critic = build(policy=policy, source=self.source)
        if self.critic.model is not None:
            self.loaded_models += 1
            if mesh is not None:
                shard(self.critic.model, mesh)

    @property
    def has_reference(self) -> bool:
        """Whether a reference is configured."""
        return self._build_reference is not None

    def load_start(self) -> LogprobModel:
        """Loads the starting weights once more, frozen: a reference, or what fresh samples are compared with."""
        self.loaded_models += 1
        model = self._scored(self.source.load())
        return model.requires_grad_(False).eval()

    def reference_key(self, data: DataModule, *, precision: str) -> dict[str, Any]:
        """Returns everything that the starting model's log-probs on these data depend on.

        An adapter is no part of it: at the start it changes nothing.
        """
        return {
            "model_hash": self.source.weights_hash(),
            "dtype": f"{self.source.dtype}, {precision}, {self.source.attention}, {self.source.quantization}",
            "tokenizer_hash": tokenizer_hash(self.tokenizer),
            "template": self.tokenizer.chat_template,
            "truncation": data.truncation,
            "data_fingerprint": data.scored_fingerprint,
            "logprob_version": LOGPROB_PATH_VERSION,
        }

    def _scored(self, backbone: Any) -> LogprobModel:
        return LogprobModel(backbone, chunk_tokens=self.source.chunk_tokens, layout=self.layout, kernel=self.kernel)

    def _load_trained(self) -> TrainedModel:
        model = self.source.load(self.head, seed=self._seed)
        self.loaded_models += 1
        if self.source.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone: Any = model
        if self.adapter is not None:
            backbone = apply_adapter(model, adapter_for(self.adapter, model, self.head), seed=self._seed)
        if self.head is Head.LANGUAGE:
            policy = self._scored(backbone)
            check_head(policy)
            check_layout(policy)
            return policy.train()
        scorer = SequenceScorer if self.head is Head.SCORE else StepScorer
        judge = scorer(backbone, layout=self.layout, kernel=self.kernel).eval()
        check_score_head(judge)
        check_layout(judge)
        return judge.train()

    def _check_reference(self, roles: Collection[Role], optional: Collection[Role]) -> None:
        if Role.REFERENCE in roles and self._build_reference is None:
            raise ConfigError(
                "reference",
                got=None,
                expected="frozen_copy, adapter_off or precomputed",
                hint="this method compares the policy with a reference",
            )
        if Role.REFERENCE not in {*roles, *optional} and self._build_reference is not None:
            raise ConfigError(
                "reference",
                got="a reference",
                expected="none",
                hint="this method takes no reference: set reference=none",
            )
