"""What validation says about a configuration that composes and cannot run."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from alignment.config.compose import compose, task_config
from alignment.config.targets import check_text, resolve
from alignment.config.typecheck import describe, mismatch
from alignment.config.validate import validate
from alignment.utils.errors import ConfigError, UserError


def check(*overrides: str, verb: str = "train", config_dir: Path | None = None) -> None:
    validate(task_config(compose(verb, list(overrides), config_dir=config_dir)), verb)


def message(*overrides: str, verb: str = "train", config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check(*overrides, verb=verb, config_dir=config_dir)
    return str(caught.value)


class TestNames:
    def test_added_key_at_the_root(self) -> None:
        assert message("+sede=1").startswith("sede: got 1, expected one of the keys: name, seed, ")
        assert message("+sede=1").endswith("did you mean 'seed'?")

    def test_added_key_inside_a_component(self) -> None:
        assert message("+method.betta=1") == (
            "method.betta: got 1, expected an argument of alignment.methods.dpo.DPO: beta, divergence, "
            "length_normalised, loss, nll_coefficient, nll_normaliser, weighting. "
            "did you mean 'method.beta'?"
        )

    def test_added_key_inside_a_nested_component(self) -> None:
        text = message("+rollout.sampling.temprature=1")
        assert text.startswith("rollout.sampling.temprature: got 1, expected an argument of alignment.types.Sampling")
        assert text.endswith("did you mean 'rollout.sampling.temperature'?")

    @pytest.mark.parametrize("group", ["hardware", "paths"])
    def test_added_key_inside_a_group_of_plain_values(self, group: str) -> None:
        assert message(f"+{group}.typo=1").startswith(f"{group}.typo: got 1, expected one of the keys of '{group}': ")

    def test_removed_key_is_missed(self) -> None:
        assert message("~method.beta") == (
            "method.beta: got 'nothing', expected a value for alignment.methods.dpo.DPO: a number in (0, inf). "
            "Add +method.beta=VALUE"
        )

    def test_removed_group_is_missed(self) -> None:
        assert message("~schedule").startswith("schedule: got 'nothing', expected a value: a mapping or null")

    def test_group_without_a_target(self) -> None:
        expected = "optim._target_: got 'nothing', expected a value: the class or function that it builds"
        assert message("~optim", "++optim.lr=0.1").startswith(expected)
        assert message("+callbacks.mine={every: 3}").startswith("callbacks.mine._target_: got 'nothing'")

    def test_runtime_argument_is_not_the_users(self) -> None:
        assert message("+data.seed=3").startswith("data.seed: got 3, expected no value. It comes from the run itself")

    def test_positional_arguments_are_refused(self) -> None:
        assert message("+method._args_=[1]").startswith("method._args_: got [1], expected an argument of ")


class TestTypes:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("method.beta=abc", "method.beta: got 'abc', expected a number"),
            ("method.beta=null", "method.beta: got None, expected a number"),
            ("method.beta=true", "method.beta: got True, expected a number"),
            ("data.shuffle=yes", "data.shuffle: got 'yes', expected true or false"),
            ("data.batch_size=1.5", "data.batch_size: got 1.5, expected an integer"),
            ("seed=one", "seed: got 'one', expected an integer"),
            ("name=5", "name: got 5, expected a text. Quote it: name=\\'5\\'"),
            ("export=both", "export: got 'both', expected 'merged', 'separate' or null"),
            ("schedule.decay=quadratic", "schedule.decay: got 'quadratic', expected 'constant', 'linear' or 'cosine'"),
            ("optim.betas=[0.9,high]", "optim.betas: got [0.9, 'high'], expected a list (each a number or Tensor)"),
            ("hardware.precision=16", "hardware.precision: got 16, expected '32-true'"),
        ],
    )
    def test_wrong_type(self, override: str, expected: str) -> None:
        assert message(override).startswith(expected)

    @pytest.mark.parametrize("override", ["method.beta=1", "optim.betas=[0.9,0.95]", "name='5'", "resume=auto"])
    def test_right_type(self, override: str) -> None:
        check(override)

    def test_node_where_another_class_belongs(self) -> None:
        text = message("rollout.sampling._target_=alignment.rewards.gold.GoldReward", "rollout.sampling={}")
        assert text.startswith("rollout.sampling")

    def test_value_where_a_component_belongs(self) -> None:
        assert message("rollout.sampling=5").startswith("rollout.sampling: got 5, expected Sampling")


class Colour(enum.StrEnum):
    RED = "red"


class Speaks(Protocol):
    def speak(self) -> None: ...


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, float, True),
        (1.5, int, False),
        (1.0, int, False),
        (True, int, False),
        (0, bool, False),
        ("1", int, False),
        ("x", str | None, True),
        (None, str | None, True),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        ([1, "a"], list[int], False),
        ({"a": 1}, dict[str, int], True),
        ("a/b", Path, True),
        ("red", Colour, True),
        ("blue", Colour, False),
        ("a", Literal["a"] | int, True),
        ("b", Literal["a"] | int, False),
        (float("inf"), float, True),
        (object, Any, True),
    ],
)
def test_values_are_checked_strictly(value: Any, annotation: Any, fits: bool) -> None:
    if value is object:
        value = {"any": ["thing"]}
    assert (mismatch(value, annotation, {}) is None) == fits


def test_nodes_are_checked_by_what_they_build() -> None:
    node = {"_target_": "somewhere.Path"}
    partial = {"_target_": "somewhere.Path", "_partial_": True}
    targets = {id(node): Path, id(partial): Path}
    assert mismatch(node, Path, targets) is None
    assert mismatch(node, Colour, targets) == "Colour"
    assert mismatch(node, float, targets) == "a number"
    assert mismatch([node], list[Path], targets) is None
    assert mismatch([node], list[Colour], targets) is not None
    assert mismatch({"a": node}, dict[str, Path], targets) is None
    assert mismatch(node, Speaks, targets) is None
    assert mismatch(partial, Path, targets) == "Path"
    assert mismatch(partial, Speaks, targets) is None
    assert mismatch(partial, Any, targets) is None


def test_descriptions_are_words() -> None:
    assert describe(int | list[int] | None) == "an integer, a list (each an integer) or null"
    assert describe(dict[str, Any]) == "a mapping"


class TestTargets:
    """Trap S2: what a configuration names is checked before and after it is imported."""

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "subprocess.Popen",
            "hydra.utils.instantiate",
            "torch.load",
            "torch.hub.load",
            "alignment.cli.main.main",
            "alignment.utils.files.write_text_atomic",
            "alignment_evil.f",
            "peft_evil.f",
            ".os.system",
            "alignment.methods.dpo.__loader__.load_module",
            "alignment.rewards.gold.GoldReward.__init__.__globals__",
            "alignment",
            "alignment.methods..dpo",
            "",
            5,
        ],
    )
    def test_refused_by_its_text(self, target: object) -> None:
        with pytest.raises(ConfigError, match=r"^method\._target_: got .*, expected a class or function defined below"):
            check_text("method", target)

    @pytest.mark.parametrize(
        "target",
        [
            "alignment.models.export.os.system",
            "alignment.models.export.shutil.rmtree",
            "alignment.pipeline.trainer.pl.Trainer.from_argparse_args",
            "alignment.data.records.dataclass",
            "alignment.methods.base.torch.load",
            "alignment.models.export.Path",
            "alignment.methods.dpo",
            "alignment.methods.dpo.DPO.terms",
            "lightning.pytorch.seed_everything",
            "peft.get_peft_model",
        ],
    )
    def test_refused_by_what_it_leads_to(self, target: str) -> None:
        check_text("method", target)
        with pytest.raises(ConfigError, match=r"^method\._target_: got .*, expected a "):
            resolve("method", target)

    def test_nothing_is_imported_before_every_target_is_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef f(): pass\n")
        monkeypatch.syspath_prepend(tmp_path)
        text = message("method._target_=evil_module.f")
        assert text.startswith("method._target_: got 'evil_module.f'")
        assert "evil_module" not in sys.modules
        assert not (tmp_path / "ran").exists()

    def test_a_bad_target_anywhere_stops_the_import_of_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("alignment.config.validate.resolve", lambda *_: pytest.fail("something was imported"))
        assert "evil.f" in message("+callbacks.mine={_target_: evil.f}")

    def test_hidden_in_a_list_or_behind_an_interpolation(self) -> None:
        assert "os.system" in message("+data.train.extra=[{_target_: os.system}]")
        assert "os.system" in message("name=os.system", "method._target_=${name}")

    def test_hidden_in_a_subclass_of_a_partial(self) -> None:
        assert "functools.partial" in message("optim._target_=functools.partial")

    def test_wrong_name_in_a_right_module(self) -> None:
        assert message("method._target_=alignment.methods.dpo.DPOO").endswith("did you mean 'DPO'?")
        assert "a name in alignment.methods" in message("method._target_=alignment.methods.dpoo.DPO")

    def test_own_packages_are_allowed_by_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_rewards_xyz.py").write_text("class Mine:\n    def score(self, rollouts): ...\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert "ALIGNMENT_ALLOW_TARGETS=PACKAGE" in message("reward._target_=my_rewards_xyz.Mine")
        monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "my_rewards_xyz")
        check("reward._target_=my_rewards_xyz.Mine")

    def test_an_error_inside_a_module_is_not_swallowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_broken_xyz.py").write_text("import a_package_that_is_not_there\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "my_broken_xyz")
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            check("reward._target_=my_broken_xyz.Mine")


class TestRules:
    def test_adapter_off_needs_an_adapter(self) -> None:
        assert message("reference=adapter_off") == (
            "reference: got 'adapter_off', expected an adapter (got adapter=none). "
            "Use reference=frozen_copy, or set adapter=lora"
        )
        check("reference=adapter_off", "adapter=lora")

    def test_method_without_a_reference_takes_none(self) -> None:
        assert message("method=sft", "reference=frozen_copy") == (
            "reference: got 'FrozenCopy', expected none, because SFT takes no reference. Use reference=none"
        )

    def test_method_with_a_reference_needs_one(self) -> None:
        assert message("reference=none").startswith("reference: got 'none', expected a reference, because DPO ")

    def test_quantised_weights_need_an_adapter_and_a_gpu(self) -> None:
        base = ("model=pretrained", "model.path=m", "model.quantization=4bit")
        assert message(*base, "hardware=single_gpu").startswith(
            "model.quantization: got '4bit', expected null without an adapter"
        )
        assert message(*base, "adapter=lora").startswith("model.quantization: got '4bit', expected null on the CPU")
        assert message(*base, "adapter=lora", "hardware=single_gpu").startswith(
            "export: got 'merged', expected separate"
        )
        check(*base, "adapter=lora", "hardware=single_gpu", "export=separate")

    def test_a_fused_update_and_clipping_under_mixed_precision(self) -> None:
        fused, mixed = "optim.fused=true", "hardware.precision=bf16-mixed"
        assert message(fused, mixed) == (
            "optim.fused: got True, expected null with hardware.precision=bf16-mixed and trainer.gradient_clip_val "
            "above 0. Set optim.fused=null, or hardware.precision=32-true"
        )
        check(fused)
        check(mixed)
        check(fused, mixed, "trainer.gradient_clip_val=null")

    def test_simpos_margin_is_given_once(self) -> None:
        assert message("method=simpo", "method.gamma=1") == (
            "method.gamma: got 1, expected either it or method.gamma_beta_ratio (got 0.5) to be a number. "
            "Both name the target margin: set one, and the other to null, as in method.gamma_beta_ratio=null"
        )
        assert "(got None) to be a number" in message("method=simpo", "method.gamma_beta_ratio=null")
        check("method=simpo", "method.gamma=1", "method.gamma_beta_ratio=null")
        check("method=simpo", "method.gamma=0", "method.gamma_beta_ratio=null")
        check("method=ppo", "method.gamma=1")

    def test_ktos_mean_needs_two_records(self) -> None:
        assert message("method=kto", "data.batch_size=1") == (
            "data.batch_size: got 1, expected at least 2. "
            "z0 is a mean over the records of an optimiser step; method.z0=zero does without it"
        )
        alone = ("data.batch_size=1", "data.micro_batch_size=1")
        assert message("method=kto", *alone).startswith("data.batch_size: got 1, expected at least 2")
        check("method=kto", "method.z0=zero", *alone)
        check("method=dpo", *alone)

    @pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan"])
    def test_a_mixture_has_a_weight_for_each_loss(self, weight: str) -> None:
        mixture = "method/loss=mpo"
        assert message(mixture, f"method.loss.weights.bco={weight}").startswith("method.loss.weights: got {'sigmoid': ")
        assert "a weight above 0 for each of sigmoid, bco." in message(mixture, "+method.loss.weights.hinge=1")
        assert "sigmoid, bco, hinge" in message(mixture, "+method/loss@method.loss.losses.hinge=hinge")
        check(mixture, "method.loss.weights.bco=2")

    def test_the_worlds_true_reward_is_for_the_world(self) -> None:
        data = ("data=jsonl", "data.train.path=my.jsonl")
        assert message(*data, "reward=gold").startswith("reward: got 'gold', expected another reward, or none")
        check(*data, "reward=none")

    def test_the_reward_follows_the_data(self) -> None:
        def reward(verb: str, *overrides: str) -> str | None:
            cfg = task_config(compose(verb, list(overrides)))
            return None if cfg.reward is None else str(cfg.reward._target_).rpartition(".")[2]

        own = ("data=jsonl", "data.train.path=my.jsonl")
        texts = ("data=openings", "data.train.source.path=my.jsonl")
        assert reward("train") == reward("evaluate", "model.path=m") == "GoldReward"
        assert reward("train", *own) is None
        assert reward("evaluate", "model.path=m", *texts) is None
        assert reward("train", "data=hh") is None
        assert reward("train", *own, "reward=vader") == "VaderReward", "what is typed wins"
        assert reward("train", "experiment=stories_sentiment") == "VaderReward", "and so does an experiment"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("method.beta=0", "method.beta: got 0, expected a number in (0, inf)"),
            ("method.beta=-0.1", "method.beta: got -0.1, expected a number in (0, inf)"),
            ("optim.lr=0.0", "optim.lr: got 0.0, expected more than 0"),
            ("trainer.max_steps=-2", "trainer.max_steps: got -2, expected at least -1"),
            ("data.micro_batch_size=0", "data.micro_batch_size: got 0, expected at least 1"),
            ("trainer.max_epochs=null", "trainer.max_steps: got -1, expected a number of steps"),
            ("data.batch_size=8", "data.batch_size: got 8, expected at least data.micro_batch_size (32)"),
            ("data.max_prompt_length=128", "data.max_prompt_length: got 128, expected less than data.max_length (128)"),
        ],
    )
    def test_numbers_out_of_range(self, override: str, expected: str) -> None:
        assert message(override).startswith(expected)
