"""The models of a run: built once, from the roles that a method declares and no others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from alignment.data.encoding import tokenizer_hash
from alignment.models.adapters import apply_adapter
from alignment.models.logprob_model import LOGPROB_PATH_VERSION, LogprobModel, check_head
from alignment.models.references import Reference
from alignment.models.sharding import shard
from alignment.types import Role
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase

    from alignment.data.datamodule import DataModule
    from alignment.models.backbone import ModelSource


class ModelBundle:
    """Holds the policy and what it is compared with.

    The policy is registered as a module by the method. Frozen models are reachable from here only, outside
    the module tree: then optimiser and checkpoint hold exactly what trains, on one process, DDP and FSDP2.

    Args:
        source: Where the starting weights come from.
        adapter: A peft configuration, or ``None`` to train every weight.
        reference: Builds the reference strategy, or ``None``.
        seed: Seeds an adapter's weights.

    Attributes:
        tokenizer: The policy's.
        policy: Set by :meth:`build`.
        reference: Set by :meth:`build` when the roles ask for one.
        loaded_models: How many sets of weights are in memory.
    """

    def __init__(
        self,
        *,
        source: ModelSource,
        adapter: LoraConfig | None,
        reference: Callable[..., Reference] | None,
        seed: int,
    ) -> None:
        self.source = source
        self.adapter = adapter
        self.tokenizer: PreTrainedTokenizerBase = source.tokenizer()
        self.policy: LogprobModel | None = None
        self.reference: Reference | None = None
        self.loaded_models = 0
        self._build_reference = reference
        self._seed = seed

    def build(self, roles: Collection[Role], *, mesh: DeviceMesh | None = None) -> LogprobModel:
        """Loads what the roles need; a second call returns what is there.

        Args:
            roles: The method's.
            mesh: Data-parallel mesh to shard over, or ``None`` to keep models whole.

        Returns:
            The policy, for the method to register.

        Raises:
            ConfigError: If a reference is needed and none configured, or the other way round.
        """
        if self.policy is not None:
            return self.policy
        self._check_reference(roles)
        policy = self._load(trainable=True)
        check_head(policy)
        if Role.REFERENCE in roles:
            assert self._build_reference is not None
            self.reference = self._build_reference(policy=policy, load_frozen=lambda: self._load(trainable=False))
            if mesh is not None and self.reference.frozen is not None:
                shard(self.reference.frozen, mesh)
        if self.source.compile:
            policy.causal_lm.base_model.compile(dynamic=True)
        self.policy = policy if mesh is None else shard(policy, mesh)
        return self.policy

    def load_start(self) -> LogprobModel:
        """Loads the starting weights once more, frozen: what fresh samples are compared with."""
        return self._load(trainable=False)

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
            "data_fingerprint": data.fingerprint,
            "logprob_version": LOGPROB_PATH_VERSION,
        }

    def _load(self, *, trainable: bool) -> LogprobModel:
        model = self.source.load()
        self.loaded_models += 1
        if trainable and self.source.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        backbone = apply_adapter(model, self.adapter, seed=self._seed) if trainable and self.adapter else model
        scored = LogprobModel(backbone, chunk_tokens=self.source.chunk_tokens)
        return scored.train() if trainable else scored.requires_grad_(False).eval()

    def _check_reference(self, roles: Collection[Role]) -> None:
        if Role.REFERENCE in roles and self._build_reference is None:
            raise ConfigError(
                "reference",
                got=None,
                expected="frozen_copy, adapter_off or precomputed",
                hint="this method compares the policy with a reference",
            )
        if Role.REFERENCE not in roles and self._build_reference is not None:
            raise ConfigError(
                "reference",
                got="a reference",
                expected="none",
                hint="this method takes no reference: set reference=none",
            )
