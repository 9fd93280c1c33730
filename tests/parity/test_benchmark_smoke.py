"""The benchmarks still run, say what they were asked, and refuse to compare unequal work."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the benchmarks need the extra `peers`: pip install -e '.[peers]'")

import beta_sweep
import compiled
import growth
import grpo_run
import grpo_step
import overhead
import padding
import prefix_sharing
import suite
import torch
import training_step
import training_step_run
import trl.trainer.utils as its_head
from equal_inputs import hh_lengths
from operation_times import KINDS, OTHER
from shapes import HH_LENGTHS, SHAPES, llama, model_flops, real_tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignment.cli.main import main as align_main
from alignment.types import Layout

FOLDER = Path(training_step.__file__).parent
FORK, LONG_SECONDS = multiprocessing.get_context("fork"), 120
TINY = ["--shape", "tiny", "--steps", "2", "--repetitions", "1"]


def here(script: str, job: dict) -> dict:
    """Does a child's job in this process: the libraries are loaded once."""
    assert script == Path(training_step_run.__file__).name
    job = json.loads(json.dumps(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(its_head, "_use_triton", its_head._use_triton)  # put back what a changed peer replaces
        got = training_step_run.result_of(job)
    got |= {"peak_bytes": training_step_run.peak_bytes(job["device"]), "threads": 1, "load_before": 0.0}
    return json.loads(json.dumps(got))


def forked(script: str, job: dict) -> dict:
    """Does a child's job in a fork of this process: TRL's online trainer leaves its marks on the one that it was in."""
    from trl import GRPOTrainer  # noqa: F401  (before the fork, once for all)

    assert script == Path(grpo_run.__file__).name
    job = json.loads(json.dumps(job))
    receiver, sender = FORK.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)  # first of all: a parent that used OpenMP would deadlock its child
        got = training_step_run.result_of(job, grpo_run.SYSTEMS)
        sender.send(json.dumps(got | {"peak_bytes": training_step_run.peak_bytes(job["device"]), "threads": 1}))

    process = FORK.Process(target=work)
    process.start()
    sender.close()
    try:
        return json.loads(receiver.recv()) | {"load_before": 0.0}
    finally:
        process.join(LONG_SECONDS)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls a benchmark's main as the command line does, and returns its JSON and its page."""

    def run(module, *arguments: str) -> tuple[dict, str]:
        script = Path(module.__file__)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--out", str(tmp_path)])
        module.main()
        files = (tmp_path / f"{script.stem}.{kind}" for kind in ("json", "md"))
        raw, page = (file.read_text("utf-8") for file in files)
        assert str(Path.home()) not in page
        assert str(tmp_path) not in raw + page
        return json.loads(raw), page

    monkeypatch.setattr(training_step, "child", here)
    monkeypatch.setattr(beta_sweep, "child", here)
    monkeypatch.setattr(grpo_step, "child", forked)
    return run


def a_run(row: str, **changes) -> dict:
    logged = {"losses": {"1": 0.693, "2": 0.65}, "gradient_norms": {"1": 3.0, "2": 2.0}}
    return {"method": "sft", "row": row, "digest": "same"} | logged | changes


def test_equal_work_passes():
    equal = a_run("ours", losses={"1": 0.693, "2": 0.6501})
    other = a_run("ours", method="orpo", digest="other", losses={"1": 3.0})
    training_step.check_equal_work([a_run("TRL"), equal, other], tolerances=training_step.TOLERANCES["float32"])
    later = a_run("ours", losses={"1": 0.693, "2": 0.75}, gradient_norms={"1": 3.0, "2": 3.0})
    tolerances, steps = training_step.TOLERANCES["bfloat16"], training_step.EQUAL_STEPS["bfloat16"]
    training_step.check_equal_work([a_run("TRL"), later], tolerances=tolerances, steps=steps)
    with pytest.raises(RuntimeError, match="reached other losses"):
        training_step.check_equal_work([a_run("TRL"), later], tolerances=tolerances)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "other"}, "different tokens"),
        ({"losses": {"1": 0.693, "2": 0.66}}, "reached other losses"),
        ({"losses": {"1": 0.693, "2": float("nan")}}, "reached other losses"),
        ({"gradient_norms": {"1": 3.1, "2": 2.0}}, "reached other gradient_norms"),
        ({"losses": {"1": 0.693}}, "different steps"),
        ({"losses": {}}, "different steps"),
    ],
)
def test_unequal_work_is_refused(changes, message):
    runs = [a_run("TRL"), a_run("ours", **changes)]
    with pytest.raises(RuntimeError, match=message):
        training_step.check_equal_work(runs, tolerances=training_step.TOLERANCES["float32"])


def test_the_parents_import_nothing_heavy():
    """A child's peak memory begins with its parent's."""
    modules = "training_step, overhead, growth, beta_sweep, grpo_step"
    check = f"import sys, {modules}; assert not {{'torch', 'numpy', 'transformers', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=FOLDER, check=True)


@pytest.mark.slow
def test_training_step_has_each_method_beside_trls(call):
    result, page = call(training_step, *TINY)
    (shape,) = result["shapes"].values()
    runs = shape["runs"]
    assert [(run["method"], run["row"]) for run in runs] == [
        (row.method, row.name) for row in training_step.rows_of(list(training_step.METHODS), [], changed=True)
    ]
    assert [sum(run["row"].startswith(name) for run in runs) for name in ("TRL", suite.CHANGED, "ours")] == [8, 5, 7]
    for run in runs:
        assert len(run["step_seconds"]) == len(run["step_cpu_seconds"]) == 2
        assert len(run["losses"]) == 3
        # Four numbers a weight, and the reference's.
        assert run["state_bytes"] == run["parameters"] * 4 * (3 + run["models"]) < run["peak_bytes"]
    with_reference = {run["method"] for run in runs if run["models"] == 2}
    assert with_reference == {"dpo_frozen_copy", "kto"}
    # The same pairs a step, whether read as pairs or as records of their own.
    assert shape["real_tokens"] == [real_tokens(step) for step in (SHAPES["tiny"].lengths * 2)[1:3]] == [88, 85]
    for method in training_step.METHODS.values():
        assert f"| {method.title} | ours |" in page
        assert f"- {method.title}: {method.trainer}Trainer" in page
    assert "| SFT | TRL, padding_free |" in page
    # A line of its own for each, and beside TRL as it is and as it was changed.
    assert page.count("| ours |") == 2 * len(training_step.METHODS) + 4
    assert page.count("| ours | changed TRL |") == 4


@pytest.mark.slow
def test_training_step_measures_layouts_and_the_share_of_the_peak(call):
    alone = ["--no-peer", "--mfu", "--dtype", "bfloat16", "--layouts"]
    result, page = call(training_step, *TINY, "--method", "dpo_precomputed", *alone)
    runs = result["shapes"]["tiny"]["runs"]
    assert [run["row"] for run in runs] == ["ours", *(f"ours, {name}" for name in training_step.LAYOUTS)]
    # Weights, gradients and two moments in bf16, and no second model.
    assert {run["state_bytes"] / run["parameters"] for run in runs} == {8.0}
    assert result["peak_operations"] > 1e8
    assert "share of the peak" in page
    assert "MFU" not in page
    result["environment"]["device"] = "NVIDIA H200"
    page = "\n".join(training_step.page(result))
    assert "share of the peak | MFU |" in page
    assert "The maker gives 989 T" in page
    assert "bf16 weights" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job | {"records": job["records"].replace("pairs", "turned")}, "different tokens"),
        (lambda job: job | {"options": {"beta": 0.11}}, "reached other gradient_norms"),
    ],
    ids=["other tokens", "another beta"],
)
def test_a_peer_that_does_other_work_is_refused(call, monkeypatch, change, message):
    def other(script: str, job: dict) -> dict:
        if job["system"] != "trl":
            return here(script, job)
        path = Path(job["records"])
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.with_name("turned.jsonl").write_text("".join(lines[::-1]), "utf-8")
        return here(script, change(job))

    monkeypatch.setattr(training_step, "child", other)
    with pytest.raises(RuntimeError, match=message):
        call(training_step, *TINY, "--method", "dpo_frozen_copy")


@pytest.mark.slow
def test_overhead_compares_align_train_with_a_plain_loop(tmp_path):
    """In processes of its own, as all of them run."""
    asked = ["--shape", "tiny", "--repetitions", "1", "--steps", "10", "--threads", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(FOLDER / "overhead.py"), *asked]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    runs = json.loads((tmp_path / "overhead.json").read_text("utf-8"))["shapes"]["tiny"]["runs"]
    assert [run["row"] for run in runs] == [overhead.OURS, overhead.BARE]
    # Of the steps that this project logs by default.
    assert [list(run[what]) for run in runs for what in ("losses", "gradient_norms")] == [["10"]] * 4
    assert all(run["peak_bytes"] > run["resident_before"] > 2**20 for run in runs)
    assert "| tiny |" in (tmp_path / "overhead.md").read_text("utf-8")


def test_a_failed_child_says_why():
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        suite.child(Path(training_step_run.__file__).name, {"system": "nothing"})


def test_prefix_sharing_compares_layouts_with_the_bound(call):
    options = ["--shape", "tiny", "--completion", "16", "--repetitions", "2"]
    result, page = call(prefix_sharing, *options)
    assert list(result["ratios"]) == list(prefix_sharing.RATIOS)
    assert [found["prompt"] for found in result["ratios"].values()] == [4, 16, 32, 64, 128]
    for found in result["ratios"].values():
        assert list(found["runs"]) == ["trunk", "trunk and head"]
        assert all(len(times) == 2 for runs in found["runs"].values() for times in runs.values())
    for ratio, bound in (("1/4", "1.11"), ("1", "1.33"), ("2", "1.50"), ("4", "1.67"), ("8", "1.80")):
        rows = [row for row in page.splitlines() if row.startswith(f"| {ratio} |")]
        assert len(rows) == 2
        assert all(f"| {bound} |" in row for row in rows)


def test_compiled_compares_passes_and_counts_graphs(call, monkeypatch):
    """Without inductor: what is compiled is run as it was traced."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    result, page = call(compiled, *TINY, "--longest", "12", "--threads", "1")
    assert list(result["layouts"]) == ["padded", "prefix_shared"]
    for found in result["layouts"].values():
        assert found["graphs"] >= 1
        assert [len(times) for times in found["runs"].values()] == [2, 2]
    assert "| prefix_shared |" in page


@pytest.mark.slow
def test_a_profile_says_where_the_time_goes(call):
    result, page = call(training_step, *TINY, "--method", "simpo", "--profile", "--threads", "1")
    for run in result["shapes"]["tiny"]["runs"]:
        found = run["operation_seconds"]
        assert found["matrix products"] > 0
        assert found["optimiser and clipping"] > 0
        assert found.keys() <= {*KINDS, OTHER}
    rows = [row for row in page.splitlines() if row.startswith("| SimPO |")]
    assert len(rows[-1].split("|")) == 5 + len(KINDS) + 1


def test_prefix_sharing_refuses_layouts_that_differ():
    model = prefix_sharing.LogprobModel(
        LlamaForCausalLM(LlamaConfig(**llama(32, 2, 4, 2, 64, 128))), chunk_tokens=16, layout=Layout.PREFIX_SHARED
    )
    one, other = (prefix_sharing.group_batches(2, (size, 8, 8), vocab=128, device="cpu") for size in (4, 5))
    prefix_sharing.check_equal(model, one, tolerance=1e-4)
    shared = Layout.PREFIX_SHARED
    with pytest.raises(RuntimeError, match="log-probs differ"):
        prefix_sharing.check_equal(model, one | {shared: other[shared]}, tolerance=1e-4)
    saved = [batches[Layout.PACKED].input_ids.numel() / batches[shared].input_ids.numel() for batches in (one, other)]
    assert saved == pytest.approx([prefix_sharing.bound(4, 8, 2), prefix_sharing.bound(5, 8, 2)])
    four = prefix_sharing.group_batches(3, (6, 5, 5, 5, 5), vocab=128, device="cpu")
    prefix_sharing.check_equal(model, four, tolerance=1e-4)
    saved = four[Layout.PACKED].input_ids.numel() / four[shared].input_ids.numel()
    assert saved == pytest.approx(prefix_sharing.bound(6, 5, 4)) == 4 * 11 / 26


@pytest.mark.slow
def test_beta_sweep_compares_ways_of_running_the_same_betas(call, monkeypatch):
    def align(words: list[str], folder: Path) -> None:
        assert align_main(["train", *words, f"paths.runs={folder}/runs", f"paths.cache={folder}/cache"]) == 0

    monkeypatch.setattr(beta_sweep, "align", align)
    result, page = call(beta_sweep, *TINY, "--betas", "2", "--threads", "1")
    assert [run["way"] for run in result["runs"]] == [way.name for way in beta_sweep.WAYS]
    assert [run["caches"] for run in result["runs"]] == [1, 0, 2, 0]
    assert all(run["losses"].keys() == {"0.05", "0.1"} for run in result["runs"])
    assert all(f"| {way.name} |" in page for way in beta_sweep.WAYS)


def test_beta_sweep_refuses_other_losses_and_other_betas(tmp_path):
    run = {"way": "one", "losses": {"0.1": 0.69, "0.2": 0.68}}
    beta_sweep.check_equal_work([run, run | {"losses": {"0.1": 0.69001, "0.2": 0.68}}])
    with pytest.raises(RuntimeError, match="reached losses"):
        beta_sweep.check_equal_work([run, run | {"losses": {"0.1": 0.691, "0.2": 0.68}}])
    with pytest.raises(RuntimeError, match="trained"):
        beta_sweep.check_equal_work([run, run | {"losses": {"0.1": 0.69}}])
    with pytest.raises(RuntimeError, match=r"method\.nonsense"):
        beta_sweep.align(["method=dpo", "method.nonsense=1"], tmp_path)


@pytest.mark.slow
def test_growth_measures_each_axis(call, monkeypatch):
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    if not has_matplotlib:
        monkeypatch.setattr(growth, "draw", lambda result, path: None)
    result, page = call(growth, "--shape", "tiny", "--steps", "2", "--layouts", "packed", "--peer")
    assert list(result["points"]) == ["24 128 2", "48 128 2", "24 256 2", "24 128 4"]
    assert all(len(found["runs"]) == 3 for found in result["points"].values())
    for axis in growth.GROWTH["tiny"].axes:
        rows = page.partition(f"| {axis.title} |")[2].partition("\n\n")[0]
        assert all(f"| {value} | {row} |" in rows for value in axis.values for row in ("TRL", "ours", "ours, packed"))
    assert "(growth.png)" in page


@pytest.mark.slow
def test_grpo_step_compares_equal_work(call):
    asked = ["--quick", "--repetitions", "1", "--prompts", "2", "--passes", "1", "--steps", "1", "--no-uneven"]
    result, page = call(grpo_step, *asked, "--cells", "6,9")
    assert list(result["cells"]) == ["6, 9"]
    for found in result["cells"].values():
        rows = {run["row"]: run for run in found["runs"]}
        assert list(rows) == ["TRL, 8 a pass", "changed TRL, head on completions only, 8 a pass", "ours, 8 a pass"]
        assert len({run["digest"] for run in rows.values()}) == 1
        for run in rows.values():
            (step,), (write,), (update,) = (run[f"{what}_seconds"] for what in ("step", "write", "update"))
            assert 0 < write < step > update > 0
        norms = found["equal_work"]
        assert list(norms["ours"]) == list(norms["trl"]) == ["1", "2"]
        assert norms["ours"] == pytest.approx(norms["trl"], rel=1e-3)
        assert {run["row"] for run in found["decode"]} == set(grpo_step.ENGINES[:2])
    assert page.count("| changed TRL, head on completions only |") == 1


def test_grpo_step_refuses_other_prompts_and_other_gradients(monkeypatch, tmp_path):
    one = {"row": "TRL", "digest": "a"}
    grpo_step.check_equal_work([one, one | {"row": "ours"}])
    with pytest.raises(RuntimeError, match="had other prompts"):
        grpo_step.check_equal_work([one, one | {"row": "ours", "digest": "b"}])
    norms = {"ours": {"1": 2.0}, "trl": {"1": 2.01}}
    monkeypatch.setattr(grpo_step, "child", lambda _, job: {"gradient_norms": norms[job["system"]]})
    (tmp_path / "prompts.jsonl").write_text("", "utf-8")
    job = {"dtype": "float32", "prompts": 1, "records": str(tmp_path / "prompts.jsonl")}
    assert grpo_step.check_equal_updates(job, tmp_path) == norms
    for its in ({"1": 2.03}, {"1": float("nan")}, {"2": 2.0}, {}):
        norms["trl"] = its
        with pytest.raises(RuntimeError, match="gradients' norms"):
            grpo_step.check_equal_updates(job, tmp_path)
    norms |= {"ours": {"1": 0.0}, "trl": {"1": 0.0}}
    with pytest.raises(RuntimeError, match="gradients' norms"):
        grpo_step.check_equal_updates(job, tmp_path)


def test_the_bound_of_decoding_by_hand():
    """Two layers of 32, four heads of which two have keys: 16 numbers a token, layer and kind."""
    config = llama(32, 2, 4, 2, 64, 128)
    weights = grpo_step.parameters(config)
    assert weights == sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(**config)).parameters())
    sizes = {"rows": 3, "prompt": 10, "completion": 4, "bytes_a_number": 4}
    # Steps 2, 3, 4 see 11, 12, 13 tokens: 12 on average, with 2 x 2 x 16 numbers each.
    read = 4 * (weights + 3 * 12 * 64)
    done = 3 * (2 * weights + 4 * 2 * 32 * 12)
    slow_memory = grpo_step.decode_bound(config, **sizes, bytes_per_second=read, operations_per_second=1e3 * done)
    assert (slow_memory.by, slow_memory.tokens_per_second) == ("memory", pytest.approx(3))
    slow_products = grpo_step.decode_bound(config, **sizes, bytes_per_second=1e3 * read, operations_per_second=2 * done)
    assert (slow_products.by, slow_products.tokens_per_second) == ("arithmetic", pytest.approx(6))


def test_growth_draws(tmp_path):
    pytest.importorskip("matplotlib")
    small = growth.GROWTH["tiny"]
    run = {"method": growth.METHOD, "step_seconds": [0.1], "peak_bytes": 2**30, "state_bytes": 0}
    found = {"real_tokens": [64], "runs": [run | {"row": "TRL"}, run | {"row": "ours, packed"}]}
    points = {growth.key(point): found for point in small.points()}
    growth.draw({"arguments": {"shape": "tiny"}, "points": points}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_gpus_script_parses_and_stops_when_its_time_is_up(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "DEVICE": "cpu", "SHAPES": "tiny", "LIMIT_SECONDS": "0"}
    done = subprocess.run(
        ["bash", str(FOLDER / "gpu.sh"), str(tmp_path)], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    names = (
        "training_step_tiny",
        "prefix_sharing_sdpa",
        "prefix_sharing_flex",
        "prefix_sharing_varlen",
        "prefix_sharing_cudnn",
        "prefix_sharing_groups",
        "compiled",
        "grpo_step",
        "training_step_more",
        "training_step_layouts",
    )
    assert (tmp_path / "skipped.txt").read_text("utf-8").splitlines() == [f"{name}: no time left" for name in names]
    assert json.loads((tmp_path / "versions.json").read_text("utf-8"))["torch"] == torch.__version__


def test_operations_are_those_that_torch_counts():
    """Of everything but attention: torch counts no causal halves."""
    config = llama(32, 3, 4, 2, 64, 128)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    prompt, chosen, rejected = 12, 5, 9
    counted = 0
    for side in (chosen, rejected):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.ones(1, prompt + side, dtype=torch.long), logits_to_keep=side)
        counted += sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))
        # Each of two products: two operations for each pair of tokens that see one another, half of all.
        counted += 2 * 2 * config["num_hidden_layers"] * config["hidden_size"] * (prompt + side) ** 2 / 2
    assert model_flops(config, ((prompt, chosen, rejected),), passes=3) == 3 * counted


def test_the_lengths_of_hh_are_the_datas(shared_data):
    data, model = shared_data / "preference" / "hh_harmless.jsonl.gz", shared_data / "weights" / "stories15M"
    tokenizer = AutoTokenizer.from_pretrained(model)
    count = lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # noqa: E731
    assert hh_lengths(data, count) == HH_LENGTHS
    assert sum(SHAPES["hh"].lengths, ()) == HH_LENGTHS


@pytest.mark.slow
def test_padding_counts_what_every_layout_computes(call, shared_data, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_SHARED", str(shared_data.parent))
    result, page = call(padding, "--data", "ultrafeedback", "--epochs", "1")
    cells = result["data"]["ultrafeedback"]["cells"]
    assert len(cells) == page.count("\n| pa") + page.count("\n| prefix_shared") == 27
    for cell in cells:
        found, one_rank = cell["now"], cell["ranks"] == 1
        assert (found["padding"] < 0.001) == (cell["layout"] != "padded")
        assert one_rank == (found["waiting_step"] == 0)
        assert found["waiting_step"] <= found["waiting_micro_batch"] < 1
        assert 0.1 < found["attention"] < 0.6
    # A padded row is padded as attention is, where no step is short of records.
    assert cells[0]["now"]["padding"] == pytest.approx(cells[0]["now"]["attention"], abs=1e-3)


def test_padding_stops_without_data(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNMENT_SHARED", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["padding.py"])
    with pytest.raises(SystemExit, match="set ALIGNMENT_SHARED"):
        padding.main()
