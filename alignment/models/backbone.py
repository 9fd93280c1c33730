"""Where a causal language model comes from: a pretrained folder or hub name, or fresh weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from safetensors import SafetensorError

from alignment.data.tokenizer import TokenizerOptions, load_tokenizer, with_own_pad_token
from alignment.models.kernels import plain_attention
from alignment.models.layout import LayoutChoice
from alignment.models.score_model import NUM_LABELS, score_head, score_head_name
from alignment.types import Head
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16"]
Attention = Literal["sdpa", "flex", "varlen", "eager", "flash_attention_2"]


class ModelSource(Protocol):
    """What the bundle needs to know about a model before it loads any weights."""

    dtype: DType
    attention: Attention
    quantization: Literal["4bit"] | None
    gradient_checkpointing: bool
    compile: bool
    chunk_tokens: int
    layout: LayoutChoice

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer."""
        ...

    def config(self) -> PreTrainedConfig:
        """Reads the architecture."""
        ...

    def load(self, head: Head = Head.LANGUAGE, *, seed: int = 0) -> PreTrainedModel:
        """Loads the weights, every time anew; a head that they lack is drawn from the seed."""
        ...

    def weights_hash(self) -> str:
        """Names the weights by content."""
        ...

    def describe(self) -> str:
        """Says in words where the weights come from."""
        ...


class PretrainedModel:
    """A model from a local folder or from the Hugging Face hub.

    Weights are read from safetensors only and code from a repository is never run.

    Args:
        path: A folder, or a hub name such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
        revision: The hub's commit, branch or tag; ``None`` for the default branch.
        dtype: Type of the weights in memory.
        attention: Attention implementation; ``flex`` and ``varlen`` are sdpa but for several sequences in a row.
        quantization: ``4bit`` loads the base weights in NF4 through bitsandbytes (GPU, with an adapter).
        gradient_checkpointing: Recompute activations in the backward pass, block by block.
        compile: Compile the decoder with ``torch.compile``.
        chunk_tokens: Scored tokens whose logits exist at a time, in fp32; a head of another type is copied whole.
        layout: How sequences lie in rows; ``auto`` is the fastest that is exact for the architecture.
        tokenizer: What the tokenizer lacks.
    """

    def __init__(
        self,
        *,
        path: str,
        revision: str | None,
        dtype: DType,
        attention: Attention,
        quantization: Literal["4bit"] | None,
        gradient_checkpointing: bool,
        compile: bool,
        chunk_tokens: int,
        layout: LayoutChoice,
        tokenizer: TokenizerOptions,
    ) -> None:
        self.path = str(Path(path).expanduser()) if is_local(path) else path
        self.revision = revision
        self.dtype = dtype
        self.attention = attention
        self.quantization = quantization
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.chunk_tokens = chunk_tokens
        self.layout: LayoutChoice = layout
        self.tokenizer_options = tokenizer

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer that lies beside the weights."""
        self._check_path()
        return load_tokenizer(self.path, revision=self.revision, options=self.tokenizer_options)

    def config(self) -> PreTrainedConfig:
        """Reads the architecture, with dropout off everywhere."""
        from transformers import AutoConfig

        self._check_path()
        try:
            config = AutoConfig.from_pretrained(self.path, revision=self.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(
                "model.path",
                got=self.path,
                expected="a folder with config.json and safetensors weights, or a reachable hub name",
                hint=_first_line(error),
            ) from error
        return without_dropout(config)

    def load(self, head: Head = Head.LANGUAGE, *, seed: int = 0) -> PreTrainedModel:
        """Loads the weights.

        Args:
            head: What sits on the trunk. A language model's folder has no head that judges: that one is drawn anew;
                a reward model's folder brings its own.
            seed: Seeds such a head.

        Raises:
            UserError: If weights are missing, misshapen, or not in safetensors.
        """
        config, quantization = for_head(self.config(), head, pad_id=self._pad_id(head)), self._quantization_config()
        try:
            loaded: Any = auto_class(head).from_pretrained(
                self.path,
                revision=self.revision,
                config=config,
                dtype=getattr(torch, self.dtype),
                attn_implementation=plain_attention(self.attention),
                use_safetensors=True,
                trust_remote_code=False,
                quantization_config=quantization,
                output_loading_info=True,
            )
            model, report = loaded
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise UserError(f"model.path={self.path}: the weights cannot be loaded: {_first_line(error)}") from error
        missing = set(report["missing_keys"]) - set(getattr(model, "all_tied_weights_keys", ()) or ())
        if head is not Head.LANGUAGE:
            own = {name for name in missing if name.startswith(f"{score_head_name(model)}.")}
            missing -= own
            if own:
                draw_head(model, seed=seed)
        wrong = [f"{name}: {have} in the file, {want} in config.json" for name, have, want in report["mismatched_keys"]]
        if missing or wrong:
            problems = [f"{name} is missing" for name in sorted(missing)] + wrong
            raise UserError(
                f"model.path={self.path}: {len(problems)} weights do not fit config.json: {'; '.join(problems[:5])}. "
                "They would be random: use the folder that the configuration belongs to"
            )
        return model

    def weights_hash(self) -> str:
        """Hashes the configuration and the weight files of a folder; for a hub model its commit names them."""
        from transformers.utils import cached_file

        if is_local(self.path):
            folder = Path(self.path)
            return hash_files([folder / "config.json", *sorted(folder.glob("*.safetensors"))])
        resolved = cached_file(self.path, "config.json", revision=self.revision)
        return f"{self.path}@{Path(str(resolved)).parent.name}"

    def describe(self) -> str:
        """Returns the folder or hub name."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    def _pad_id(self, head: Head) -> int | None:
        return None if head is Head.LANGUAGE else with_own_pad_token(self.tokenizer()).pad_token_id  # type: ignore[return-value]

    def _check_path(self) -> None:
        if is_local(self.path) and not (Path(self.path) / "config.json").is_file():
            exists = Path(self.path).exists()
            raise ConfigError(
                "model.path",
                got=self.path,
                expected="a folder that holds config.json",
                hint="the folder is there but has no config.json" if exists else "no such folder",
            )

    def _quantization_config(self) -> Any:
        if self.quantization is None:
            return None
        if not torch.cuda.is_available():
            raise ConfigError(
                "model.quantization",
                got=self.quantization,
                expected="null on a machine without a CUDA device",
            )
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )


def pretrained_like(source: ModelSource, *, path: str, revision: str | None) -> PretrainedModel:
    """Returns a model from another path that is held, and computes, as ``source`` does."""
    return PretrainedModel(
        path=path,
        revision=revision,
        dtype=source.dtype,
        attention=source.attention,
        quantization=None,
        gradient_checkpointing=source.gradient_checkpointing,
        compile=source.compile,
        chunk_tokens=source.chunk_tokens,
        layout=source.layout,
        tokenizer=TokenizerOptions(pad_token=None, eos_token=None, bos_token=None, chat_template=None),
    )


class RandomModel:
    """Fresh weights of any architecture: where training starts from nothing.

    Args:
        architecture: A transformers model type, for example ``llama``, ``qwen2``, ``gpt2``.
        config: Fields of that architecture's configuration.
        seed: Seeds the weights.
        dtype: Type of the weights in memory.
        attention: Attention implementation.
        gradient_checkpointing: Recompute activations in the backward pass, block by block.
        compile: Compile the decoder with ``torch.compile``.
        chunk_tokens: Scored tokens whose logits exist at a time, in fp32; a head of another type is copied whole.
        layout: How sequences lie in rows; ``auto`` is the fastest that is exact for the architecture.
        build_tokenizer: Makes the tokenizer; its size becomes ``vocab_size``.
    """

    def __init__(
        self,
        *,
        architecture: str,
        config: dict[str, Any],
        seed: int,
        dtype: DType,
        attention: Attention,
        gradient_checkpointing: bool,
        compile: bool,
        chunk_tokens: int,
        layout: LayoutChoice,
        build_tokenizer: Callable[[], PreTrainedTokenizerBase],
    ) -> None:
        self.architecture = architecture
        self.fields = {str(key): value for key, value in config.items()}
        self.seed = seed
        self.dtype = dtype
        self.attention = attention
        self.quantization: Literal["4bit"] | None = None
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.chunk_tokens = chunk_tokens
        self.layout: LayoutChoice = layout
        self._tokenizer = build_tokenizer()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer that was built for this model."""
        return self._tokenizer

    def config(self) -> PreTrainedConfig:
        """Builds the architecture's configuration around the tokenizer."""
        from transformers import AutoConfig

        tokenizer = self._tokenizer
        config = AutoConfig.for_model(
            self.architecture,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **self.fields,
        )
        return without_dropout(config)

    def load(self, head: Head = Head.LANGUAGE, *, seed: int = 0) -> PreTrainedModel:
        """Draws the weights; the process's own random state stays where it was.

        Args:
            head: What sits on the trunk.
            seed: Seeds a head that judges; the trunk has the model's own seed.
        """
        # On the CPU whatever the device: another device would draw other weights from the same seed.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.random.default_generator.manual_seed(self.seed)
            model = auto_class(head).from_config(
                for_head(self.config(), head, pad_id=self._tokenizer.pad_token_id),
                dtype=getattr(torch, self.dtype),
                attn_implementation=plain_attention(self.attention),
            )
        if head is Head.LANGUAGE:
            model.generation_config.eos_token_id = self._tokenizer.eos_token_id
        else:
            draw_head(model, seed=seed)
        return model

    def weights_hash(self) -> str:
        """Names the weights by what they are drawn from."""
        text = json.dumps(
            [self.config().to_dict(), self.seed, self.dtype, torch.__version__], sort_keys=True, default=str
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def describe(self) -> str:
        """Returns the architecture and the seed."""
        return f"random {self.architecture}, seed {self.seed}"


def auto_class(head: Head) -> Any:
    """Returns the transformers class that loads a model with this head."""
    import transformers

    return {
        Head.LANGUAGE: transformers.AutoModelForCausalLM,
        Head.SCORE: transformers.AutoModelForSequenceClassification,
        Head.STEPS: transformers.AutoModelForTokenClassification,
    }[head]


def for_head(config: PreTrainedConfig, head: Head, *, pad_id: Any) -> PreTrainedConfig:
    """Returns the configuration with this head's number of outputs, and the pad token that other tools search for."""
    if head is not Head.LANGUAGE:
        config.num_labels = NUM_LABELS[head]
        if head is Head.STEPS:
            config.id2label, config.label2id = {0: "wrong", 1: "right"}, {"wrong": 0, "right": 1}
        config.get_text_config().pad_token_id = pad_id
    return config


@torch.no_grad()
def draw_head(model: PreTrainedModel, *, seed: int) -> None:
    """Draws a judging head from N(0, 1 / (hidden size + 1)) (Stiennon et al. 2020, appendix B), its bias zero."""
    head = score_head(model)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
    head.weight.copy_(weight)
    if head.bias is not None:
        head.bias.zero_()


def is_local(path: str) -> bool:
    """Tells a folder from a hub name: ``a/b`` is a hub name unless there is such a folder."""
    looks_like_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    return looks_like_path or Path(path).expanduser().exists()


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Sets every dropout probability to zero.

    With dropout the policy's log-probs differ from its own and from the reference's on the same
    tokens: the ratio at step 0 would not be one and the loss of DPO not log 2.
    """
    text_config = config.get_text_config()
    for part in {id(config): config, id(text_config): text_config}.values():
        for name, value in vars(part).items():
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, int | float) and value > 0:
                setattr(part, name, 0.0)
    return config


def hash_files(files: list[Path]) -> str:
    """Returns one SHA-256 over the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
