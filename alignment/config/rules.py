"""Combinations of groups that cannot work together. One small function a rule; each says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.utils.errors import ConfigError

Config = Mapping[str, Any]
Targets = Mapping[str, Any]
Rule = Callable[[Config, Targets], Iterator[ConfigError]]


def check_rules(cfg: Config, targets: Targets) -> None:
    """Raises the first objection of any rule.

    Args:
        cfg: The whole configuration as plain data.
        targets: What each node's ``_target_`` led to, by the node's key.

    Raises:
        ConfigError: A combination cannot work.
    """
    for rule in RULES:
        for objection in rule(cfg, targets):
            raise objection


def adapter_off_needs_adapter(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """The policy without its adapter is the reference only where there is an adapter."""
    if _class_name(targets, "reference") == "AdapterOff" and cfg.get("adapter") is None:
        yield ConfigError(
            "reference",
            got="adapter_off",
            expected="an adapter (got adapter=none)",
            hint="Use reference=frozen_copy, or set adapter=lora",
        )


def reference_is_used(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A method without the role REFERENCE must not be given one: it would be loaded for nothing."""
    roles = _roles(targets, optional=True)
    if roles is not None and "reference" not in roles and cfg.get("reference") is not None:
        yield ConfigError(
            "reference",
            got=_class_name(targets, "reference"),
            expected=f"none, because {_class_name(targets, 'method')} takes no reference",
            hint="Use reference=none",
        )


def reference_is_there(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A method with the role REFERENCE cannot do without."""
    roles = _roles(targets)
    if roles is not None and "reference" in roles and cfg.get("reference") is None:
        yield ConfigError(
            "reference",
            got="none",
            expected=f"a reference, because {_class_name(targets, 'method')} compares the policy with one",
            hint="Use reference=frozen_copy, precomputed, or adapter_off (with adapter=lora)",
        )


def critic_is_used(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A method without the role CRITIC must not be given one, and one with it cannot do without."""
    roles = _roles(targets)
    name = _class_name(targets, "method")
    if roles is not None and "critic" not in roles and cfg.get("critic") is not None:
        got, expected = _class_name(targets, "critic"), f"none, because {name} has no critic"
        yield ConfigError("critic", got=got, expected=expected, hint="Use critic=none")
    if roles is not None and "critic" in roles and cfg.get("critic") is None:
        expected = f"a critic, because {name} takes advantages from its values"
        yield ConfigError("critic", got="none", expected=expected, hint="Use critic=separate or value_head")


def a_head_on_the_trunk_warms_up_with_it(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """The loss of a value head moves the policy's trunk: it cannot learn alone."""
    steps = _get(cfg, "method", "critic_warmup_steps")
    if steps and _class_name(targets, "critic") == "ValueHead":
        expected, hint = "0 with critic=value_head", "Its loss trains the policy's trunk too: use critic=separate"
        yield ConfigError("method.critic_warmup_steps", got=steps, expected=expected, hint=hint)


def completions_are_in_no_cache(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """What a policy writes in training was never scored before."""
    method = targets.get("method")
    writes = method is not None and method.batch_type.__name__ == "PromptBatch"
    if writes and _class_name(targets, "reference") == "Precomputed":
        yield ConfigError(
            "reference",
            got="precomputed",
            expected=f"frozen_copy, because {_class_name(targets, 'method')} learns from what the policy writes",
            hint="Its completions are in no cache; or reference=adapter_off with adapter=lora",
        )


def judges_write_nothing(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A model that is trained to judge has no language head to sample from."""
    roles = _roles(targets)
    if roles is not None and "policy" not in roles and _get(cfg, "callbacks", "fresh_samples") is not None:
        yield ConfigError(
            "callbacks.fresh_samples",
            got="samples from the trained model",
            expected=f"null, because {_class_name(targets, 'method')} trains a model that judges and writes nothing",
            hint="Set callbacks.fresh_samples=null",
        )


def fused_update_leaves_no_room_to_clip(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """Under mixed precision Lightning clips no gradients of a fused optimiser."""
    precision = str(_get(cfg, "hardware", "precision") or "")
    clips = bool(_get(cfg, "trainer", "gradient_clip_val"))
    if _get(cfg, "optim", "fused") is True and precision.endswith("-mixed") and clips:
        yield ConfigError(
            "optim.fused",
            got=True,
            expected=f"null with hardware.precision={precision} and trainer.gradient_clip_val above 0",
            hint="Set optim.fused=null, or hardware.precision=32-true",
        )


def quantization_needs_adapter(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """Quantised weights cannot train."""
    quantization = _get(cfg, "model", "quantization")
    if quantization is not None and "trainer" in cfg and cfg.get("adapter") is None:
        yield ConfigError(
            "model.quantization",
            got=quantization,
            expected="null without an adapter (got adapter=none)",
            hint="Quantised weights cannot train: set adapter=lora, or model.quantization=null",
        )


def quantization_needs_gpu(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """The kernels of 4-bit weights exist for CUDA devices."""
    quantization = _get(cfg, "model", "quantization")
    if quantization is not None and _get(cfg, "hardware", "accelerator") == "cpu":
        yield ConfigError(
            "model.quantization",
            got=quantization,
            expected="null on the CPU (got hardware.accelerator=cpu)",
            hint="Use hardware=single_gpu, ddp or fsdp, or set model.quantization=null",
        )


def quantised_weights_export_an_adapter(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """An adapter cannot be merged into 4-bit weights; it would be found out after the training."""
    if _get(cfg, "model", "quantization") is not None and cfg.get("export") == "merged":
        yield ConfigError(
            "export",
            got="merged",
            expected="separate with quantised weights",
            hint="Set export=separate, or export=null",
        )


def gold_reward_knows_its_data(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """The embedded world's true reward can judge the embedded world only."""
    module = getattr(targets.get("data.train"), "__module__", "")
    if module == "alignment.data.worlds.sources":
        return
    if _class_name(targets, "scorer") == "GoldReward":
        yield ConfigError("scorer", got="gold", expected="another scorer, for data that is not the embedded world's")
    if _class_name(targets, "reward") == "GoldReward":
        yield ConfigError(
            "reward",
            got="gold",
            expected="another reward, or none, for data that is not the embedded world's",
            hint="Set reward=none: fresh samples then have KL, length and diversity. Or reward=vader, or your own",
        )


def selection_is_complete(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A choice among samples needs samples, a reward that measures it, and a scorer only where it asks one."""
    selection, scorer = cfg.get("selection"), cfg.get("scorer")
    if selection is None:
        if scorer is not None:
            got, hint = _class_name(targets, "scorer"), "Set selection=best_of_n, or scorer=none"
            yield ConfigError("scorer", got=got, expected="none without a selection", hint=hint)
        return
    if cfg.get("reward") is None:
        yield ConfigError("reward", got="none", expected="a reward, to measure what was selected by", hint="")
    num_samples = _get(cfg, "rollout", "sampling", "num_samples")
    if isinstance(num_samples, int) and num_samples < 2:
        expected = "at least 2, for selection to choose from"
        yield ConfigError("rollout.sampling.num_samples", got=num_samples, expected=expected, hint="16 is usual")
    asks = selection.get("weights") != "equal"
    if asks and scorer is None:
        hint = "Set scorer=model and scorer.paths=[...], or selection=majority_vote"
        yield ConfigError("scorer", got="none", expected=f"a scorer for {_class_name(targets, 'selection')}", hint=hint)
    if not asks and scorer is not None:
        hint = "Set selection.weights=score, or scorer=none"
        yield ConfigError("scorer", got=_class_name(targets, "scorer"), expected="none for equal votes", hint=hint)


def numbers_are_in_range(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """Values without meaning outside a range, whatever the method."""
    for key, lowest, is_open, why in _RANGES:
        value = _get(cfg, *key.split("."))
        if isinstance(value, int | float) and (value < lowest or (is_open and value == lowest)):
            yield ConfigError(key, got=value, expected=f"{'more than' if is_open else 'at least'} {lowest}", hint=why)


_RANGES = (
    ("optim.lr", 0, True, "Nothing would be learnt"),
    ("optim.weight_decay", 0, False, "A negative decay makes weights grow"),
    ("trainer.gradient_clip_val", 0, True, "null switches clipping off"),
    ("trainer.max_steps", -1, False, "-1 leaves trainer.max_epochs to end the run"),
    ("data.micro_batch_size", 1, False, ""),
    ("data.max_length", 2, False, "A prompt and a completion have at least a token each"),
    ("hardware.num_nodes", 1, False, ""),
    ("trainer.val_every_n_steps", 1, False, "null validates after each epoch; trainer.limit_val_batches=0 never"),
    ("callbacks.fresh_samples.every_n_steps", 1, False, "null samples at the start and at the end"),
    ("callbacks.fresh_samples.num_prompts", 1, False, "callbacks.fresh_samples=null samples never"),
)


def target_margin_is_given_once(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """SimPO's gamma and its ratio to beta are one number: one of them is set."""
    gamma, ratio = _get(cfg, "method", "gamma"), _get(cfg, "method", "gamma_beta_ratio")
    has_both = "gamma_beta_ratio" in (cfg.get("method") or {})
    if has_both and (gamma is None) == (ratio is None):
        yield ConfigError(
            "method.gamma",
            got=gamma,
            expected=f"either it or method.gamma_beta_ratio (got {ratio}) to be a number",
            hint="Both name the target margin: set one, and the other to null, as in method.gamma_beta_ratio=null",
        )


def mixture_has_a_weight_for_each_loss(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """What is mixed and what it is multiplied by have the same names."""
    if _class_name(targets, "method.loss") != "Mixture":
        return
    losses, weights = _get(cfg, "method", "loss", "losses"), _get(cfg, "method", "loss", "weights")
    weighted = all(0 < weight < math.inf for weight in weights.values())
    if not (losses and weighted and losses.keys() == weights.keys()):
        expected = f"a weight above 0 for each of {', '.join(losses)}"
        hint = "Add +method.loss.weights.NAME=VALUE, or take a name out with ~method.loss.losses.NAME"
        yield ConfigError("method.loss.weights", got=weights, expected=expected, hint=hint)


def a_mean_over_a_step_needs_two_records(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """KTO's z0 is what is usual in a step; one record alone would be compared with itself."""
    if _get(cfg, "method", "z0") == "mismatched" and _get(cfg, "data", "batch_size") == 1:
        yield ConfigError(
            "data.batch_size",
            got=1,
            expected="at least 2",
            hint="z0 is a mean over the records of an optimiser step; method.z0=zero does without it",
        )


def run_has_an_end(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """Something must bound the run, and it must take a step."""
    trainer = cfg.get("trainer") or {}
    if trainer.get("max_epochs", 1) is None and trainer.get("max_steps", -1) == -1:
        yield ConfigError(
            "trainer.max_steps", got=-1, expected="a number of steps", hint="Or set trainer.max_epochs: a run must end"
        )


def micro_batch_fits(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A forward pass holds no more records than an optimiser step."""
    data = cfg.get("data") or {}
    batch, micro = data.get("batch_size"), data.get("micro_batch_size")
    if isinstance(batch, int) and isinstance(micro, int) and batch < micro:
        yield ConfigError(
            "data.batch_size",
            got=batch,
            expected=f"at least data.micro_batch_size ({micro})",
            hint=f"Set data.micro_batch_size={batch}: a forward pass cannot hold more records than an optimiser step",
        )


def prompt_fits(cfg: Config, targets: Targets) -> Iterator[ConfigError]:
    """A prompt must leave room for its completion."""
    longest, prompt = _get(cfg, "data", "max_length"), _get(cfg, "data", "max_prompt_length")
    if isinstance(longest, int) and isinstance(prompt, int) and prompt >= longest:
        yield ConfigError(
            "data.max_prompt_length",
            got=prompt,
            expected=f"less than data.max_length ({longest})",
            hint="The completion needs room behind its prompt",
        )


RULES: tuple[Rule, ...] = (
    adapter_off_needs_adapter,
    reference_is_used,
    reference_is_there,
    critic_is_used,
    a_head_on_the_trunk_warms_up_with_it,
    completions_are_in_no_cache,
    judges_write_nothing,
    fused_update_leaves_no_room_to_clip,
    quantization_needs_adapter,
    quantization_needs_gpu,
    quantised_weights_export_an_adapter,
    gold_reward_knows_its_data,
    selection_is_complete,
    numbers_are_in_range,
    target_margin_is_given_once,
    mixture_has_a_weight_for_each_loss,
    a_mean_over_a_step_needs_two_records,
    run_has_an_end,
    micro_batch_fits,
    prompt_fits,
)


def _roles(targets: Targets, *, optional: bool = False) -> frozenset[str] | None:
    """Returns the roles that the configured method declares; the verbs without a method have none."""
    method = targets.get("method")
    if method is None:
        return None
    return frozenset(str(role) for role in (method.roles | method.optional_roles if optional else method.roles))


def _class_name(targets: Targets, key: str) -> str:
    return targets[key].__name__ if key in targets else ""


def _get(cfg: Config, *path: str) -> Any:
    value: Any = cfg
    for part in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
