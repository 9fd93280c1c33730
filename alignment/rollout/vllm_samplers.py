"""A running vLLM, beside the training or behind a server: it is given weights, and draws."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from alignment.models.logprob_model import LogprobModel
from alignment.rollout.hand_over import clear_folder, write_folder
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """One completion to draw.

    Attributes:
        prompt_ids: What to continue.
        seed: Of this draw alone.
    """

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Drawn:
    """What vLLM drew.

    Attributes:
        token_ids: An end-of-sequence token included.
        token_logps: In nats, under the distribution drawn from.
        finish_reason: vLLM's own: ``stop``, ``length``, or that something went wrong.
    """

    token_ids: tuple[int, ...]
    token_logps: tuple[float, ...]
    finish_reason: str | None


class Sampler(ABC):
    """A running vLLM.

    Attributes:
        context_tokens: The most tokens that it can read.
        dtype: What it computes in, as vLLM calls it: ``float32``, ``bfloat16`` or ``float16``.
        loaded: The name of the weights that it has; ``None`` where that is not known.
    """

    context_tokens: int
    dtype: str
    loaded: str | None

    @abstractmethod
    def load(self, model: LogprobModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Gives it the policy's weights, under a name."""

    @abstractmethod
    def draw(self, jobs: Sequence[Job], parameters: dict[str, Any], at_a_time: int) -> list[Drawn]:
        """Draws a completion for each job, with vLLM's sampling parameters."""

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Holds the memory that it needs."""
        yield


class Beside(Sampler):
    """vLLM's own ``LLM``, whose work is done in another process.

    Args:
        model: Says the architecture.
        tokenizer: For stop texts and bad words.
        settings: Arguments of ``LLM``.

    Raises:
        UserError: It does not start.
    """

    def __init__(self, model: LogprobModel, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> None:
        # Inside this process it would reseed its random state and make itself its distributed group.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        vllm = importlib.import_module("vllm")
        self._parameters = vllm.SamplingParams
        self._temporary = tempfile.TemporaryDirectory(prefix="alignment-vllm-")
        self._folder = Path(self._temporary.name) / "model"
        write_folder(model, tokenizer, self._folder)
        # It begins with zeros: a weight that does not come with the first load is then found by the check after it.
        clear_folder(self._folder)
        self.dtype = settings["dtype"]
        self._sleeps = settings["enable_sleep_mode"]
        self._is_asleep = False
        self.loaded = None
        try:
            self._llm = vllm.LLM(
                model=str(self._folder),
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **settings,
            )
        except Exception as error:
            raise UserError(
                f"rollout=vllm: vLLM does not start with a {type(model.hf_model).__name__}; its own messages stand "
                f"above. The last: {error}"
            ) from error
        self.context_tokens = self._llm.llm_engine.model_config.max_model_len

    def load(self, model: LogprobModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Gives it the policy's weights; one that sleeps wakes up."""
        write_folder(model, tokenizer, self._folder)
        if self._is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._folder)})
        if self._is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._is_asleep = False
        if not self._llm.reset_prefix_cache():
            raise UserError("vLLM did not forget what it had cached of the old weights")
        self.loaded = name

    def draw(self, jobs: Sequence[Job], parameters: dict[str, Any], at_a_time: int) -> list[Drawn]:
        """Draws all of them; vLLM makes its batches itself."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(job.prompt_ids)} for job in jobs],
            [self._parameters(**parameters, seed=job.seed) for job in jobs],
            use_tqdm=False,
        )
        return [_of_output(output.outputs[0]) for output in outputs]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Wakes up with the next weights, and sleeps again."""
        if self._is_asleep:
            torch.cuda.empty_cache()  # what the training has freed, for vLLM to take
        yield
        if self._sleeps:
            self._llm.sleep(level=2)
            self._is_asleep, self.loaded = True, None

    def stop(self) -> None:
        """Ends its process."""
        self._llm.llm_engine.engine_core.shutdown()
        self._temporary.cleanup()


class Server(Sampler):
    """A server's HTTP interface; weights and caches are among the routes that VLLM_SERVER_DEV_MODE=1 opens.

    Args:
        url: The server's.
        folder: Where weights are written for it.
        timeout_seconds: The most that one answer may take.

    Raises:
        ConfigError: It does not answer, or was not started as it must be.
    """

    def __init__(self, url: str, folder: Path, timeout_seconds: float) -> None:
        self._url, self._place, self._timeout = url, urlsplit(url), timeout_seconds
        self._folder = folder
        if self._place.scheme not in ("http", "https") or not self._place.hostname:
            raise ConfigError("rollout.engine.url", got=url, expected="an address like http://localhost:8000")
        (served,) = self._ask("GET", "/v1/models")["data"][:1]
        self._model, self.context_tokens = served["id"], served["max_model_len"]
        config = self._ask("GET", "/server_info?config_format=json")["vllm_config"]["model_config"]
        self.dtype = str(config["dtype"]).removeprefix("torch.")
        if config["logprobs_mode"] != "processed_logprobs":
            raise ConfigError(
                "rollout.engine.url",
                got=f"a server with --logprobs-mode {config['logprobs_mode']}",
                expected="--logprobs-mode processed_logprobs: log-probs of the distribution that is drawn from",
            )

    @property
    def loaded(self) -> str | None:  # type: ignore[override]
        """What the server itself says, so that one that was started anew is noticed."""
        return self._ask("GET", "/weight_info")["weight_version"]

    def load(self, model: LogprobModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        """Gives it the policy's weights."""
        write_folder(model, tokenizer, self._folder)
        call = {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder.resolve())}}
        self._ask("POST", "/collective_rpc", call)
        if not self._ask("POST", "/reset_prefix_cache")["success"]:
            raise UserError(f"{self._url} did not forget what it had cached of the old weights; does another use it?")
        self._ask("POST", "/update_weight_version", {"new_version": name})

    def draw(self, jobs: Sequence[Job], parameters: dict[str, Any], at_a_time: int) -> list[Drawn]:
        """Draws them, so many requests at a time."""
        # What is not said is the server's own default, which may be the model's generation_config.json.
        fixed = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
        base = {"model": self._model, "return_token_ids": True, **fixed, **parameters}

        def one(job: Job) -> Drawn:
            body = base | {"prompt": list(job.prompt_ids), "seed": job.seed}
            (choice,) = self._ask("POST", "/v1/completions", body)["choices"]
            logps = tuple(choice["logprobs"]["token_logprobs"])
            return Drawn(tuple(choice["token_ids"]), logps, choice["finish_reason"])

        with ThreadPoolExecutor(max_workers=min(at_a_time, len(jobs))) as pool:
            return list(pool.map(one, jobs))

    def _ask(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connect = HTTPSConnection if self._place.scheme == "https" else HTTPConnection
        connection = connect(self._place.hostname or "", self._place.port, timeout=self._timeout)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(verb, self._place.path.rstrip("/") + path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:
            expected = "a vLLM server that answers (docs/how-to/vllm.md)"
            raise ConfigError("rollout.engine.url", got=self._url, expected=expected, hint=str(error)) from error
        finally:
            connection.close()
        if response.status == 404:
            raise ConfigError(
                "rollout.engine.url",
                got=f"{self._url}, which has no {path.partition('?')[0]}",
                expected="a vLLM server that was started with VLLM_SERVER_DEV_MODE=1 in its environment",
            )
        if response.status != 200:
            raise UserError(f"{self._url}{path} answered {response.status}: {text[:500]}")
        return json.loads(text) if text else None


def _of_output(output: Any) -> Drawn:
    token_ids = tuple(output.token_ids)
    logps = tuple(row[token].logprob for row, token in zip(output.logprobs, token_ids, strict=True))
    return Drawn(token_ids, logps, output.finish_reason)
