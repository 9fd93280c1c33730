"""The vLLM engines: the contract of all engines wherever vLLM is installed, and what is refused everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from engine_contract import GREEDY, PROMPTS, SAMPLING, TOKENIZER, EngineContract, policy
from safetensors.torch import load_file

from alignment.models.logprob_model import LogprobModel
from alignment.rollout import vllm as vllm_engine
from alignment.rollout.hand_over import clear_folder, weights_name, write_folder
from alignment.rollout.vllm import SyncedEngine, VLLMEngine, VLLMServerEngine
from alignment.utils.errors import ConfigError, UserError

from runs import job, metrics, train

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
ON_GPU = torch.cuda.is_available()
#: Where this differs by the device.
BESIDE = ("rollout=vllm", f"rollout.engine.sleep={str(ON_GPU).lower()}", "rollout.engine.gpu_memory_utilization=0.15")


def test_one_engine_at_a_time_has_the_weights(monkeypatch):
    """One that writes ahead in a thread of its own, and one for fresh samples, share one vLLM."""
    inside, most = [0], [0]

    class Busy:
        context_tokens = None

        @contextmanager
        def awake(self):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            yield
            inside[0] -= 1

        def draw(self, jobs, parameters, batch_size):
            return jobs

    monkeypatch.setattr(SyncedEngine, "__abstractmethods__", frozenset())
    monkeypatch.setattr(SyncedEngine, "sampler", lambda self: Busy())
    monkeypatch.setattr(SyncedEngine, "_sync", lambda *_: None)
    monkeypatch.setattr(SyncedEngine, "_rollout", lambda *_: None)
    engines = [SyncedEngine(model=policy(seed=seed), tokenizer=TOKENIZER) for seed in (1, 2)]
    threads = [threading.Thread(target=engine.generate, args=(PROMPTS, SAMPLING)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == ([1], [0])


@needs_vllm
@pytest.mark.slow
class TestBeside(EngineContract):
    tolerance = 1e-3

    def engine(self, model: LogprobModel) -> VLLMEngine:
        return VLLMEngine(
            gpu_memory_utilization=0.15, sleep=ON_GPU, dtype=None, max_model_len=None, enforce_eager=True,
            model=model, tokenizer=TOKENIZER,
        )  # fmt: skip

    def test_one_process_serves_every_engine_and_weights_go_over_only_when_they_change(self, monkeypatch):
        self.engine(policy()).generate(PROMPTS, GREEDY)
        (running,) = vllm_engine._running.values()
        model = policy(seed=7, tied=False)
        self.engine(model).generate(PROMPTS, GREEDY)
        loads = []
        monkeypatch.setattr(type(running), "load", lambda *arguments: loads.append(arguments))
        self.engine(model).generate(PROMPTS, GREEDY)
        assert list(vllm_engine._running.values()) == [running]
        assert len(loads) == (1 if ON_GPU else 0), "only one that slept has to be given them anew"

    def test_weights_that_do_not_arrive_are_found(self, monkeypatch):
        """The head of a tied model, which vLLM on a CPU would keep in a layout of its own."""
        monkeypatch.setattr("alignment.rollout.hand_over._write_tied", lambda *_: None)
        vllm_engine.stop()
        with pytest.raises(UserError, match=r"log-probs differ from the policy's by .* Use rollout=hf"):
            self.engine(policy()).generate(PROMPTS, SAMPLING)
        vllm_engine.stop()


@needs_vllm
@pytest.mark.slow
class TestServer(EngineContract):
    tolerance = 1e-3

    @pytest.fixture(autouse=True, scope="class")
    def server(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("server")
        write_folder(policy(), TOKENIZER, folder / "start")
        # The same server as vllm serve, also where a rebuild of vLLM goes by another package's name.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", "8765"]
        command += ["--model", str(folder / "start"), "--dtype", "float32"]
        command += ["--logprobs-mode", "processed_logprobs", "--enforce-eager", "--gpu-memory-utilization", "0.15"]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + 600
            while not answers("http://localhost:8765/health"):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < until, "the server does not come up"
                time.sleep(1)
            type(self).folder = folder / "weights"
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)

    folder: Path

    def engine(self, model: LogprobModel) -> VLLMServerEngine:
        return VLLMServerEngine(
            url="http://localhost:8765", weights_folder=str(self.folder), timeout_seconds=300.0, model=model,
            tokenizer=TOKENIZER,
        )  # fmt: skip


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


@needs_vllm
@pytest.mark.slow
def test_grpo_trains_with_vllm(tmp_path):
    """The embedded world's model has heads of 32, which vLLM's CPU kernels have; at each step vLLM has its weights."""
    cfg = job(
        tmp_path, "method=grpo", "data=world", "reward=regex", "reward.pattern='w|k'", "reward.match=search",
        "model=world_init", "model.config.num_hidden_layers=2", "trainer.max_steps=2", "trainer.log_every_n_steps=1",
        "method.rollouts.group_size=4", "rollout.sampling.max_new_tokens=6", "rollout.engine.enforce_eager=true",
        "data.batch_size=4", "data.micro_batch_size=4", "data.train.num_records=48", "data.validation.num_records=16",
        "callbacks.fresh_samples.num_prompts=8", "hardware.threads=1", "optim.lr=1e-2", *BESIDE, small=False,
    )  # fmt: skip
    rows = metrics(train(cfg, tmp_path / "run"))
    assert rows[1]["train/loss/policy"] == pytest.approx(0.0, abs=1e-4)
    assert abs(rows[2]["train/kl/policy_reference_nats"]) > 1e-3, "the policy has not moved: this shows nothing"
    for step in (1, 2):
        assert rows[step]["train/policy/sampler_mismatch"] == pytest.approx(1.0, abs=1e-3)


def test_without_vllm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("alignment.rollout.vllm.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"rollout.engine: got 'vllm'.*pip install 'alignment\[vllm\]'"):
        engine_without_gpu()


def engine_without_gpu(**changes) -> VLLMEngine:
    options = {"gpu_memory_utilization": 0.15, "sleep": False, "dtype": None, "max_model_len": None}
    return VLLMEngine(**(options | changes), enforce_eager=True, model=policy(), tokenizer=TOKENIZER)


@pytest.mark.skipif(ON_GPU, reason="vLLM can sleep on this device")
def test_sleeping_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"rollout.engine.sleep: got True, expected false without a CUDA device"):
        engine_without_gpu(sleep=True)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="rollout: got 'vLLM, while 2 processes train', expected one process"):
        engine_without_gpu()


def test_quantised_weights_are_refused(monkeypatch):
    model = policy()
    model.hf_model.is_quantized = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"model.quantization: got 'quantised weights'.*rollout=hf"):
        VLLMEngine(
            gpu_memory_utilization=0.15, sleep=False, dtype=None, max_model_len=None, enforce_eager=True,
            model=model, tokenizer=TOKENIZER,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "words"), [("localhost:8000", "an address like"), ("http://localhost:9", "a vLLM server that answers")]
)
def test_a_server_that_is_not_there_is_refused(url, words, tmp_path):
    with pytest.raises(ConfigError, match=f"rollout.engine.url: got '{url}', expected {words}"):
        VLLMServerEngine(
            url=url, weights_folder=str(tmp_path), timeout_seconds=5.0, model=policy(), tokenizer=TOKENIZER
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_holds_the_policy_whole_with_a_head_of_its_own(tied, tmp_path):
    from transformers import AutoModelForCausalLM

    model = policy(tied=tied)
    write_folder(model, TOKENIZER, tmp_path / "w")
    files = [load_file(path) for path in (tmp_path / "w").glob("*.safetensors")]
    assert sum(len(file) for file in files) == len(model.hf_model.state_dict())
    assert not json.loads((tmp_path / "w" / "config.json").read_text())["tie_word_embeddings"]
    head = next(file["lm_head.weight"] for file in files if "lm_head.weight" in file)
    assert torch.equal(head, model.hf_model.lm_head.weight)
    clear_folder(tmp_path / "w")
    cleared = [value for path in (tmp_path / "w").glob("*.safetensors") for value in load_file(path).values()]
    assert len(cleared) == len(model.hf_model.state_dict())
    assert not any(value.any() for value in cleared)
    if not tied:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "w")
        assert not any(value.any() for value in loaded.state_dict().values())


def test_a_value_head_stays_behind(tmp_path):
    model = policy(tied=False)
    model.value_head = torch.nn.Linear(64, 1)
    write_folder(model, TOKENIZER, tmp_path / "w")
    assert set(load_file(tmp_path / "w" / "model.safetensors")) == set(model.hf_model.state_dict())


def test_a_lora_policy_goes_over_merged_and_not_with_its_adapter_off(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = policy(tied=False)
    before = model.hf_model.model.layers[0].self_attn.q_proj.weight.clone()
    adapted = get_peft_model(model.hf_model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    lora = LogprobModel(adapted, chunk_tokens=64)
    write_folder(lora, TOKENIZER, tmp_path / "w")
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    merged = load_file(tmp_path / "w" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged, before + layer.get_delta_weight("default"))
    with adapted.disable_adapter(), pytest.raises(UserError, match="switched off"):
        write_folder(lora, TOKENIZER, tmp_path / "w")


def test_the_name_of_weights_changes_with_any_bit_and_with_nothing_else():
    model = policy()
    name = weights_name(model)
    assert weights_name(policy()) == name
    model.train()
    assert weights_name(model) == name
    for parameter in model.hf_model.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] = torch.nextafter(kept.view(-1)[-1], torch.tensor(9.0))
        assert weights_name(model) != name
        with torch.no_grad():
            parameter.copy_(kept)
    assert weights_name(model) == name
