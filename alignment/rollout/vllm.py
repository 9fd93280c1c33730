"""Sampling with vLLM: in a process of its own beside the training, or on a server that is already there.

Either way the policy's weights go over as a folder of safetensors, whenever they have changed since: vLLM loads it in
place (``reload_weights``), forgets what it had cached of the old weights, and is then asked for a few log-probs, which
must be the policy's.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.distributed as dist

from alignment.data.encoding import tokenizer_hash
from alignment.models.logprob_model import LogprobModel
from alignment.models.sharding import is_sharded
from alignment.rollout.engine import TokenPrompt, check_prompts, check_sampling, evaluating
from alignment.rollout.hand_over import weights_name
from alignment.rollout.hf import completion_text, context_tokens, end_of_sequence_ids
from alignment.rollout.vllm_samplers import Beside, Drawn, Job, Sampler, Server
from alignment.types import Rollout, Sampling
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_TOKENS = 8


class SyncedEngine(ABC):
    """Samples from a policy as it is now, with a copy of its weights that is kept up to date.

    Args:
        model: The policy; with LoRA it is merged on its way.
        tokenizer: Turns completions into text.

    Raises:
        ConfigError: Several processes train, or the weights are sharded or quantised.
    """

    def __init__(self, *, model: LogprobModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        num_processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if num_processes > 1 or is_sharded(model):
            raise ConfigError(
                "rollout",
                got=f"vLLM, while {num_processes} processes train{' a sharded policy' if is_sharded(model) else ''}",
                expected="one process with the whole policy (hardware=cpu or single_gpu)",
                hint="Use rollout=hf with hardware=ddp or fsdp",
            )
        if getattr(model.hf_model, "is_quantized", False):
            raise ConfigError(
                "model.quantization",
                got="quantised weights",
                expected="null with vLLM, which is given the whole weights after each change",
                hint="Use rollout=hf",
            )

    @abstractmethod
    def sampler(self) -> Sampler:
        """Returns what draws; it is started when it is first asked for."""

    def generate(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Rollout]:
        """Draws ``sampling.num_samples`` completions of each prompt: prompt by prompt, sample by sample.

        ``sampling.batch_size`` says how many requests are open at a time on a server; in a process of its own vLLM
        sees all of them and makes its batches itself.

        Raises:
            UserError: A prompt does not fit; the sampling cannot be drawn from; vLLM does not take the weights.
        """
        check_sampling(sampling)
        check_prompts(
            prompts, context_tokens=context_tokens(self.model.hf_model), max_new_tokens=sampling.max_new_tokens
        )
        if not prompts:
            return []
        work = [(prompt, sample) for prompt in prompts for sample in range(sampling.num_samples)]
        jobs = [Job(prompt.prompt_ids, _seed(prompt, sample, sampling.seed)) for prompt, sample in work]
        stop_ids = end_of_sequence_ids(self.model.hf_model, self.tokenizer)
        with _one_at_a_time:
            sampler = self.sampler()
            check_prompts(prompts, context_tokens=sampler.context_tokens, max_new_tokens=sampling.max_new_tokens)
            with sampler.awake():
                self._sync(sampler)
                drawn = sampler.draw(jobs, _parameters(sampling, stop_ids), sampling.batch_size)
        return [
            self._rollout(prompt, sample, completion, sampling, stop_ids)
            for (prompt, sample), completion in zip(work, drawn, strict=True)
        ]

    def _sync(self, sampler: Sampler) -> None:
        """Brings the sampler's weights up to date, and makes sure that they are."""
        name = weights_name(self.model)
        if sampler.loaded != name:
            sampler.load(self.model, self.tokenizer, name)
            self._check(sampler)

    @torch.no_grad()
    def _check(self, sampler: Sampler) -> None:
        """Draws a few tokens and compares their log-probs with the policy's.

        vLLM only warns of a weight that it did not load, and of some not at all: training would go on with
        completions of another model.

        Raises:
            UserError: They differ by more than rounding.
        """
        model = self.model.hf_model
        vocabulary = min(model.config.get_text_config().vocab_size, len(self.tokenizer))
        prompt = tuple(place * 7919 % vocabulary for place in range(1, _PROBE_TOKENS + 1))
        parameters = {"max_tokens": _PROBE_TOKENS, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "logprobs": 0}
        (drawn,) = sampler.draw([Job(prompt, 0)], parameters, 1)
        ids = torch.tensor([[*prompt, *drawn.token_ids]], device=model.device)
        with evaluating(self.model), torch.autocast(model.device.type, enabled=False):
            logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        expected = logps[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()
        error = fmean(abs(ours - theirs) for ours, theirs in zip(expected, drawn.token_logps, strict=True))
        is_exact = sampler.dtype == "float32" and model.dtype == torch.float32
        tolerance = 0.01 if is_exact else 0.25
        if not error <= tolerance:
            raise UserError(
                f"after its weights were renewed, vLLM's log-probs differ from the policy's by {error:.2g} nats a "
                f"token (at most {tolerance} is rounding): it does not load all weights of a "
                f"{type(model).__name__} in place. Use rollout=hf"
            )

    def _rollout(
        self, prompt: TokenPrompt, sample: int, drawn: Drawn, sampling: Sampling, stop_ids: frozenset[int]
    ) -> Rollout:
        if drawn.finish_reason not in ("stop", "length"):
            raise UserError(f"prompt {prompt.id}: vLLM did not finish its completion ({drawn.finish_reason})")
        ended = drawn.token_ids[-1] in stop_ids
        text_ids = drawn.token_ids[:-1] if ended else drawn.token_ids
        is_greedy = sampling.temperature == 0
        return Rollout(
            prompt_id=prompt.id,
            prompt=prompt.prompt,
            prompt_ids=prompt.prompt_ids,
            completion_ids=drawn.token_ids,
            completion=completion_text(self.tokenizer, prompt.prompt_ids, text_ids),
            finish_reason=drawn.finish_reason,
            sample=sample,
            answer=prompt.answer,
            token_logps=(0.0,) * len(drawn.token_ids) if is_greedy else drawn.token_logps,
            seed=sampling.seed,
        )


class VLLMEngine(SyncedEngine):
    """Samples with a vLLM that runs beside the training, on the same GPU (or CPU), in a process of its own.

    It is started at the first call and stays for the next engine of the same settings and architecture.

    Args:
        gpu_memory_utilization: Share of the device's memory that vLLM may take; of the machine's memory on a CPU.
        sleep: Whether it gives its memory back between two calls.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` is the policy's own.
        max_model_len: The most tokens of prompt and completion; ``None`` is the model's context.
        enforce_eager: Whether to compile nothing and capture no CUDA graphs.
        model: The policy.
        tokenizer: Turns completions into text.

    Raises:
        ConfigError: vLLM is not installed; it cannot sleep here; several processes train; the weights are quantised.
    """

    def __init__(
        self,
        *,
        gpu_memory_utilization: Annotated[float, "(0, 1]"],
        sleep: bool,
        dtype: Literal["float32", "bfloat16", "float16"] | None,
        max_model_len: int | None,
        enforce_eager: bool,
        model: LogprobModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "rollout.engine",
                got="vllm",
                expected="the package vllm, which is not installed",
                hint="pip install 'alignment[vllm]', or use rollout=hf",
            )
        if sleep and not torch.cuda.is_available():
            expected = "false without a CUDA device, where vLLM cannot give its memory back"
            raise ConfigError("rollout.engine.sleep", got=True, expected=expected)
        super().__init__(model=model, tokenizer=tokenizer)
        self.sleep = sleep
        self.settings: dict[str, Any] = {
            "gpu_memory_utilization": gpu_memory_utilization,
            "enable_sleep_mode": sleep,
            "dtype": dtype or str(model.hf_model.dtype).removeprefix("torch."),
            "max_model_len": max_model_len,
            "enforce_eager": enforce_eager,
        }

    def sampler(self) -> Sampler:
        """Returns this process's vLLM; one of other settings, or for another architecture, is ended first."""
        model = self.model.hf_model
        # Not of the architecture: a name, ties, which are taken apart on the way, and what saving writes into it.
        config = model.config.to_dict() | dict.fromkeys(
            ("_name_or_path", "tie_word_embeddings", "architectures", "dtype", "transformers_version")
        )
        named = [type(model).__name__, config, self.settings, tokenizer_hash(self.tokenizer)]
        key = json.dumps(named, sort_keys=True, default=str)
        if key not in _running:
            stop()
            _running[key] = Beside(self.model, self.tokenizer, self.settings)
        return _running[key]


class VLLMServerEngine(SyncedEngine):
    """Samples with a vLLM server, started beforehand with the policy's architecture.

    Args:
        url: The server's, for example ``http://localhost:8000``.
        weights_folder: Where the policy's weights are written for the server to load: a path that both see.
        timeout_seconds: The most that one answer may take.
        model: The policy.
        tokenizer: Turns completions into text.

    Raises:
        ConfigError: The server cannot be reached, or was not started as it must be; several processes train; the
            weights are quantised.
    """

    def __init__(
        self,
        *,
        url: str,
        weights_folder: str,
        timeout_seconds: Annotated[float, "(0, inf)"],
        model: LogprobModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer)
        self._sampler = Server(url, Path(weights_folder).expanduser(), timeout_seconds)

    def sampler(self) -> Sampler:
        """Returns the server."""
        return self._sampler


#: Several models share one vLLM, and one of them may write in a thread of its own.
_one_at_a_time = threading.Lock()
#: This process's vLLM, by its settings and the model's architecture: one at most.
_running: dict[str, Beside] = {}


def stop() -> None:
    """Ends this process's vLLM, where one runs."""
    while _running:
        _running.popitem()[1].stop()


atexit.register(stop)


def _parameters(sampling: Sampling, stop_ids: frozenset[int]) -> dict[str, Any]:
    """A sampling in vLLM's words: those of its SamplingParams and of its completions interface are the same."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "stop": sampling.stop,
        "include_stop_str_in_output": True,
        "stop_token_ids": sorted(stop_ids),
        "bad_words": sampling.bad_words,
        "logprobs": 0,
    }


def _seed(prompt: TokenPrompt, sample: int, seed: int) -> int:
    """A completion's seed, in 63 bits: a function of the sampling's seed, prompt and sample number only."""
    name = f"{seed}/{sample}/{prompt.id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1
