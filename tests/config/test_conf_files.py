"""Every file of conf/ and sweeps/ composes, is valid, and none is left out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from alignment.cli.help import head_comment
from alignment.config.compose import compose, task_config
from alignment.config.paths import conf_dir, sweeps_dir
from alignment.config.validate import validate

SCORES = ["selection=best_of_n", "rollout.sampling.num_samples=2"]
# What else must be chosen for a file to be part of something that can run.
WITH = {
    "data/demonstrations": ["method=sft"],
    "data/world_chains_demonstrations": ["method=sft"],
    "data/world_chains_outcomes": ["method=reward_model"],
    "data/world_chains_steps": ["method=prm"],
    "data/world_demonstrations": ["method=sft"],
    "data/world_feedback": ["method=kto"],
    "critic/separate": ["method=ppo"],
    "critic/value_head": ["method=ppo"],
    **{f"method/kl/{name}": ["method=grpo"] for name in ("loss", "reward")},
    "method/kl/none": ["method=grpo", "reference=none"],
    **{f"method/policy_loss/{name}": ["method=grpo"] for name in ("clipped", "cispo", "reinforce")},
    **{f"method/preset/{name}": ["method=grpo"] for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "trl")},
    **{
        f"method/preset/{name}": [f"method={name.partition('_')[0]}"]
        for name in ("ipo_authors", "ipo_paper", "orpo_paper", "orpo_trl", "simpo_paper", "simpo_trl")
    },
    "method/rollouts/default": ["method=grpo"],
    "method/shaping/dapo": ["method=grpo"],
    "method/shaping/none": ["method=grpo"],
    "method/value_loss/clipped": ["method=ppo"],
    "model/chains_init": ["method=sft", "data=world_chains_demonstrations"],
    "model/world_init": ["method=sft", "data=world_demonstrations"],
    "reference/adapter_off": ["adapter=lora"],
    "reference/none": ["method=sft"],
    "reward/composite": ["+reward@reward.parts.length.reward=length", "+reward.parts.length.weight=1"],
    # No judge is shipped: the Protocol stands in for one.
    "reward/judge": ["reward.judge._target_=alignment.rewards.judge.Judge"],
    "reward/model": ["reward.paths=[given]"],
    **{f"scorer/{path.stem}": SCORES for path in (conf_dir() / "scorer").glob("*.yaml") if path.stem != "none"},
    "scorer/composite": [*SCORES, "+reward@scorer.parts.length.reward=length", "+scorer.parts.length.weight=1"],
    "scorer/model": [*SCORES, "scorer.paths=[given]"],
    "selection/best_of_n": ["scorer=length", "rollout.sampling.num_samples=2"],
    "selection/majority_vote": ["data=world_chains", "rollout.sampling.num_samples=2"],
}
VERBS = ("train", "evaluate", "generate")


def _files() -> list[str]:
    conf = [path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")]
    sweeps = [path.relative_to(sweeps_dir()) for path in sweeps_dir().rglob("*.yaml")]
    return sorted(str(path.with_suffix("")) for path in [*conf, *sweeps])


FILES = _files()


def _verb(group: str) -> str:
    if group == "pipeline":
        return "pipeline"
    if group == "":
        return "train"
    for verb in VERBS:
        text = (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
        entries = [key.split()[-1] for entry in yaml.safe_load(text)["defaults"] if entry != "_self_" for key in entry]
        if group in entries:
            return verb
    return "train"


def _request(name: str) -> tuple[str, list[str]] | None:
    """Returns the verb and the overrides that take a file in."""
    group, _, choice = name.rpartition("/")
    if group == "" and name != "pipeline":
        return name, []
    if name == "pipeline":
        return "pipeline", ["pipeline=quickstart"]
    if group in ("hydra", "hydra/job_logging", "hydra/hydra_logging"):
        return "train", [f"{group}={choice}"]
    if group in ("sweep", "model_optim"):
        extra = [f"+sweep={choice}"] if group == "sweep" else [f"model={choice}"]
        return "train", [*extra, *WITH.get(name.replace("model_optim", "model"), [])]
    if group == "wandb":
        return None
    verb = _verb(group)
    return verb, [f"{group}={choice}", *WITH.get(name, [])]


def _missing(value: Any, key: str = "") -> list[str]:
    if isinstance(value, dict):
        return [found for name, entry in value.items() for found in _missing(entry, f"{key}.{name}".lstrip("."))]
    return [key] if value == "???" else []


def _composed(verb: str, overrides: list[str]) -> DictConfig:
    """Composes with something in the place of every value that the user must give."""
    cfg = compose(verb, overrides)
    given = [f"{key}=given" for key in _missing(OmegaConf.to_container(cfg)) if not key.startswith("hydra.")]
    return task_config(compose(verb, [*overrides, *given]) if given else cfg)


REQUESTS = {name: request for name in FILES if (request := _request(name)) is not None}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_file_composes_and_is_valid(name: str) -> None:
    verb, overrides = REQUESTS[name]
    validate(_composed(verb, overrides), verb)


def test_no_file_is_left_out() -> None:
    on_disk = [path for folder in (conf_dir(), sweeps_dir()) for path in folder.rglob("*.y*ml")]
    for_other_programs = sorted(set(FILES) - set(REQUESTS))
    assert for_other_programs == ["wandb/dpo_beta"]
    assert len(REQUESTS) + len(for_other_programs) == len(on_disk) > 50


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name])
def test_every_choice_says_what_it_is(name: str) -> None:
    folder = sweeps_dir() if name.startswith(("sweep/", "wandb/")) else conf_dir()
    assert head_comment(folder / f"{name}.yaml")


def test_wandb_sweep_calls_the_command() -> None:
    sweep = yaml.safe_load((sweeps_dir() / "wandb" / "dpo_beta.yaml").read_text(encoding="utf-8"))
    assert sweep["command"][:2] == ["align", "train"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    values = {key: entry["values"][0] for key, entry in sweep["parameters"].items()}
    overrides = [*sweep["command"][2:-1], *(f"{key}={value}" for key, value in values.items())]
    validate(task_config(compose("train", overrides)), "train")


def test_wandb_sweep_has_the_values_of_the_named_sweep() -> None:
    wandb = yaml.safe_load((sweeps_dir() / "wandb" / "dpo_beta.yaml").read_text(encoding="utf-8"))
    named = yaml.safe_load((sweeps_dir() / "sweep" / "dpo_beta.yaml").read_text(encoding="utf-8"))
    params = named["hydra"]["sweeper"]["params"]["method.beta"]
    assert [float(value) for value in params.split(",")] == wandb["parameters"]["method.beta"]["values"]


def test_sweeps_override_recipes_and_repeat_none() -> None:
    for path in (sweeps_dir() / "sweep").glob("*.yaml"):
        assert "defaults" in yaml.safe_load(path.read_text(encoding="utf-8")), f"{path} overrides no recipe"


def test_method_files_switch_their_own_roles() -> None:
    """`method=X` alone is a valid command for every method."""
    for path in (conf_dir() / "method").glob("*.yaml"):
        validate(_composed("train", [f"method={path.stem}"]), "train")
