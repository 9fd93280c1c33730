"""What all online methods do with roll-outs: what is written, when, how it is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from online_tester import ONLINE, SEVERAL
from pyarrow import parquet

from alignment.config.validate import validate
from alignment.methods.grpo import GRPO
from alignment.methods.kl import KLPenalty
from alignment.methods.online import OnlineMethod
from alignment.methods.online_pairs import OnlinePairs
from alignment.methods.policy_gradient import PolicyGradientMethod
from alignment.methods.ppo import PPO
from alignment.methods.rloo import RLOO
from alignment.rollout.experience import Experience, Measured
from alignment.types import Rollout, TokenLogps
from alignment.utils.errors import ConfigError, UserError

from method_tester import MethodTester
from runs import SMALL, exported, job, metrics, train, train_forked

GRPO_RUN = (*ONLINE, "method=grpo", "method.rollouts.group_size=4")
SHORT = ("trainer.max_steps=2", "export=null")


def rows(run_dir: Path, number: int = 0) -> list[dict]:
    return parquet.read_table(run_dir / "rollouts" / f"{number:06d}.parquet").to_pylist()


def experience(rewards: list[float], kl: list[list[float]], *, group_size: int) -> Experience:
    """Completions of as many tokens as ``kl`` has numbers, log policy - log reference of each."""
    measured = []
    for place, (reward, ratios) in enumerate(zip(rewards, kl, strict=True)):
        rollout = Rollout(
            prompt_id=f"p{place // group_size}",
            prompt="x",
            prompt_ids=(1,),
            completion_ids=(5,) * len(ratios),
            completion="y",
            finish_reason="stop",
            sample=place % group_size,
            token_logps=(-1.0,) * len(ratios),
        )
        reference = torch.tensor([-1.0 - ratio for ratio in ratios]).numpy()
        measured.append(Measured(rollout, reward, {}, reference_logps=reference))
    return Experience.of(measured, group_size=group_size)


def penalised(coefficient: float, *, baseline: str = "leave_one_out") -> SimpleNamespace:
    kl = KLPenalty(coefficient=coefficient, place="reward", estimator="k1", target_nats=None, horizon=None)
    method = SimpleNamespace(kl=kl, scale="none", baseline=baseline)
    method.penalty = lambda found: OnlineMethod.penalty(method, found)
    return method


def test_t26_the_kl_is_part_of_the_reward_before_the_baseline():
    """R = 1 - .5 * .4 = .8 and 0 - .5 * .2 = -.1; of two completions A = R - R' = +-.9, and not +-1 less the own KL."""
    found = RLOO.advantages(penalised(0.5), experience([1.0, 0.0], [[0.1, 0.3], [0.2]], group_size=2))
    assert found.advantages is not None
    assert found.advantages.tolist() == pytest.approx([0.9, 0.9, -0.9])
    found = RLOO.advantages(penalised(0.5, baseline="none"), experience([1.0, 0.0], [[0.1, 0.3], [0.2]], group_size=2))
    assert found.advantages is not None
    assert found.advantages.tolist() == pytest.approx([0.8, 0.8, -0.1])
    found = GRPO.advantages(penalised(0.5), experience([1.0, 0.0], [[0.1, 0.3], [0.2]], group_size=2))
    assert found.advantages is not None
    assert found.advantages.tolist() == pytest.approx([0.45, 0.45, -0.45])


def test_an_experience_survives_its_state(tmp_path):
    before = experience([1.0, 0.0, 0.5, 0.25], [[0.1, 0.3], [0.2], [0.0], [0.3, 0.1, 0.2]], group_size=2)
    torch.save(before.state_dict(), tmp_path / "state")
    after = Experience.from_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert after.rollouts == before.rollouts
    assert torch.equal(after.log_ratios, before.log_ratios)


def test_groups_are_taken_out_and_put_together_with_their_tokens():
    whole = experience([1.0, 0.0, 0.5, 0.25], [[0.1, 0.3], [0.2], [0.0], [0.3, 0.1, 0.2]], group_size=2)
    second, first = whole.only([1]), whole.only([0])
    assert second.log_ratios.tolist() == pytest.approx([0.0, 0.3, 0.1, 0.2])
    assert second.rewards.tolist() == [0.5, 0.25]
    again = second.and_then(first)
    assert [rollout.prompt_id for rollout in again.rollouts] == ["p1", "p1", "p0", "p0"]
    assert again.log_ratios.tolist() == pytest.approx([0.0, 0.3, 0.1, 0.2, 0.1, 0.3, 0.2])


def test_what_a_failed_completion_lacks_is_zero():
    """With ``reward.on_error=score`` a share of the batch, or all of a second one, may have failed."""
    rollouts = experience([1.0, 0.0], [[0.1], [0.2]], group_size=1).rollouts
    measured = [Measured(rollouts[0], 0.0, {"errors": 1.0}), Measured(rollouts[1], 1.0, {"right": 1.0, "errors": 0.0})]
    both = Experience.of(measured, group_size=1)
    assert {name: values.tolist() for name, values in both.components.items()} == {
        "errors": [1.0, 0.0],
        "right": [0.0, 1.0],
    }
    failed, scored = Experience.of(measured[:1], group_size=1), Experience.of(measured[1:], group_size=1)
    for first, second, right in ((failed, scored, [0.0, 1.0]), (scored, failed, [1.0, 0.0])):
        assert first.and_then(second).components["right"].tolist() == right


def test_dynamic_sampling_keeps_groups_that_differ_before_and_after_shaping():
    """A penalty for length alone tells no right from wrong (DAPO, equation 11)."""
    raw = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    shaped = torch.tensor([0.0, -0.1, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0])
    found = replace(
        experience(raw.tolist(), [[0.0]] * 8, group_size=2),
        rewards=shaped,
        weights=torch.tensor([1.0] * 6 + [0.0] * 2),  # of the last group all were cut off, and are masked
    )
    method = SimpleNamespace(rollouts=SimpleNamespace(dynamic_sampling=3))
    assert OnlineMethod.useful_groups(method, found) == [1]
    method.rollouts.dynamic_sampling = None
    assert OnlineMethod.useful_groups(method, found) == [0, 1, 2, 3]


def test_every_completion_is_kept_with_what_was_made_of_it(tmp_path):
    run = train(job(tmp_path, *GRPO_RUN, *SHORT), tmp_path / "run")
    found = rows(run)
    assert len(found) == 8 * 4
    for row in found:
        assert row["reward"] == float("w" in row["completion"] or "k" in row["completion"])
        assert len(row["completion_ids"]) == len(row["token_logps"]) == len(row["advantages"])
    groups = {name: [row for row in found if row["prompt_id"] == name] for name in {row["prompt_id"] for row in found}}
    assert all(len({tuple(row["completion_ids"]) for row in group}) == 4 for group in groups.values()), "T28"
    for group in groups.values():
        rewards = torch.tensor([row["reward"] for row in group])
        expected = (rewards - rewards.mean()) / rewards.std() if rewards.std() else torch.zeros(4)
        assert [row["advantages"][0] for row in group] == pytest.approx(expected.tolist(), abs=1e-5)  # T21
    logged = metrics(run)[1]["train/reward/total"]
    assert logged == pytest.approx(sum(row["reward"] for row in found) / len(found))


def test_completions_depend_on_seed_step_prompt_and_sample(tmp_path):
    first = rows(train(job(tmp_path, *GRPO_RUN, *SHORT), tmp_path / "first"))
    other_batches = rows(train(job(tmp_path, *GRPO_RUN, *SHORT, "rollout.sampling.batch_size=5"), tmp_path / "second"))
    assert [row["completion_ids"] for row in first] == [row["completion_ids"] for row in other_batches]
    other_seed = rows(train(job(tmp_path, *GRPO_RUN, *SHORT, "rollout.sampling.seed=7"), tmp_path / "third"))
    assert [row["completion_ids"] for row in first] != [row["completion_ids"] for row in other_seed]


def test_the_same_prompt_is_completed_anew_the_next_time(tmp_path):
    run = train(job(tmp_path, *GRPO_RUN, "data.limit=8", "trainer.max_epochs=2", *SHORT), tmp_path / "run")
    first, second = (
        {(row["prompt_id"], row["sample"]): tuple(row["completion_ids"]) for row in rows(run, number)}
        for number in (0, 1)
    )
    assert first.keys() == second.keys()
    assert sum(first[key] == second[key] for key in first) < len(first) / 4


def test_t16_scoring_has_the_temperature_of_sampling(tmp_path):
    """At step 0 the engine and the policy say the same of every token, whatever the temperature."""
    for name, steps in (("on_policy", ()), ("several", SEVERAL)):
        overrides = (*GRPO_RUN, *steps, "rollout.sampling.temperature=0.5", *SHORT)
        found = metrics(train(job(tmp_path, *overrides), tmp_path / name))[1]
        assert found["train/policy/sampler_mismatch"] == pytest.approx(1.0, abs=1e-4)
        assert found["train/policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert found["train/kl/policy_reference_nats"] == pytest.approx(0.0, abs=1e-3)


def learner(**options) -> SimpleNamespace:
    return SimpleNamespace(**{"ratio": "token", "longest": 10, **options})


def scored(lengths: list[int]) -> tuple[SimpleNamespace, TokenLogps]:
    index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    batch = SimpleNamespace(token_weights=torch.ones(len(index)), sequence_weights=torch.ones(len(lengths)))
    return batch, TokenLogps(torch.zeros(len(index)), index, len(lengths))


def test_the_normalisers_are_what_they_say():
    """Losses 1 2 3 | 6: all tokens alike 12/4, means of completions (2 + 6)/2, sums over a constant (.6 + .6)/2."""
    batch, policy = scored([3, 1])
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    for normaliser, per, count, expected in (
        ("token", "tokens", 4, 3.0),
        ("sequence", "sequences", 2, 4.0),
        ("constant", "sequences", 2, 0.6),
    ):
        term = PolicyGradientMethod.averaged(learner(normaliser=normaliser), values, batch, policy)
        assert term.per == per
        assert (term.values * term.weights).sum().item() / count == pytest.approx(expected)


def test_masked_tokens_are_in_no_denominator():
    found = experience([1.0, 0.5, 0.0, 0.2], [[0.1] * 3, [0.1], [0.1] * 2, [0.1] * 5], group_size=2)
    found = replace(found, weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    counted = OnlineMethod.counted(SimpleNamespace(), found)
    assert counted["tokens"].tolist() == [1, 7]
    assert counted["sequences"].tolist() == [1, 2]
    assert counted["real_tokens"].tolist() == [6, 9]


def test_t24_bootstrap_puts_the_critics_word_in_the_rewards_place():
    """Two tokens cut off, values .5 .25 and .4 behind them, gamma = lam = 1: A = .4 - V, whatever the reward says."""
    found = experience([1.0], [[0.0, 0.0]], group_size=1)
    found = replace(
        found,
        rollouts=(replace(found.rollouts[0], finish_reason="length"),),
        values=torch.tensor([0.5, 0.25]),
        last_values=torch.tensor([0.4]),
    )
    for truncated, expected in (("bootstrap", [-0.1, 0.15]), ("keep", [0.5, 0.75])):
        method = penalised(0.5)
        method.rollouts = SimpleNamespace(truncated=truncated)
        method.gamma = method.lam = 1.0
        method.whiten_advantages = False
        advantages = PPO.advantages(method, found).advantages
        assert advantages is not None
        assert advantages.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "overrides",
    [
        (*GRPO_RUN, *SEVERAL),
        (*GRPO_RUN, "method.rollouts.dynamic_sampling=5"),
        (*ONLINE, "method=online_dpo", "method.rollouts.group_size=2"),
    ],
    ids=["all", "dynamic sampling", "ties"],
)
def test_a_run_is_replayed_from_disk_bit_by_bit(overrides, tmp_path):
    written = train(job(tmp_path, *overrides), tmp_path / "written")
    replay = (*overrides, "rollout=replay", f"rollout.engine.folder={written / 'rollouts'}")
    replayed = train(job(tmp_path, *replay), tmp_path / "replayed")
    expected, got = exported(written), exported(replayed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    # Some groups were left out, but not where nothing asks for it.
    left_out = [path.name for path in sorted((written / "rollouts" / "left_out").glob("*.parquet"))]
    assert bool(left_out) == ("minibatches" not in str(overrides))
    for name in left_out:
        table = parquet.read_table(written / "rollouts" / "left_out" / name)
        assert table.column("advantages").null_count == len(table)


def test_a_replay_of_what_was_not_written_says_so(tmp_path):
    written = train(job(tmp_path, *GRPO_RUN, *SHORT), tmp_path / "written")
    replay = (*GRPO_RUN, *SHORT, "rollout=replay", f"rollout.engine.folder={written / 'rollouts'}")
    with pytest.raises(UserError, match=r"has no completion 0 of prompt .* under the seed"):
        train(job(tmp_path, *replay, "seed=2"), tmp_path / "other")
    with pytest.raises(ConfigError, match=r"rollout\.engine\.folder"):
        train(job(tmp_path, *GRPO_RUN, "rollout=replay", f"rollout.engine.folder={tmp_path}"), tmp_path / "none")


def test_a_replay_is_measured_on_fresh_samples(tmp_path):
    """Held-out prompts are in no file: the policy completes them, as in the run that wrote the others."""
    small = tuple(override for override in SMALL if "fresh_samples" not in override)
    overrides = (*small, *GRPO_RUN, *SHORT, "callbacks.fresh_samples.num_prompts=2")
    written = train(job(tmp_path, *overrides, small=False), tmp_path / "written")
    replay = (*overrides, "rollout=replay", f"rollout.engine.folder={written / 'rollouts'}")
    replayed = train(job(tmp_path, *replay, small=False), tmp_path / "replayed")
    fresh, again = (
        [json.loads(line)["metrics"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
        for run in (written, replayed)
    )
    assert len(fresh) == 2
    assert fresh == again
    with pytest.raises(
        (ConfigError, InstantiationException), match=r"callbacks\.fresh_samples\.engine: got 'ReplayEngine'"
    ):
        train(job(tmp_path, *replay, "callbacks.fresh_samples.engine=${rollout.engine}", small=False), tmp_path / "no")


@pytest.mark.parametrize(
    ("overrides", "models"),
    [
        (("method=ppo",), 3),
        (("method=ppo", "adapter=lora", "reference=adapter_off", "critic=value_head"), 1),
        (("method=grpo",), 2),
        (("method=grpo", "method/kl=none", "reference=none"), 1),
        (("method=rloo", "adapter=lora", "reference=adapter_off"), 1),
        (("method=online_dpo", "adapter=lora", "reference=adapter_off"), 1),
    ],
)
def test_no_more_models_are_loaded_than_there_are_roles(tmp_path, overrides, models):
    run = train(job(tmp_path, *ONLINE, *overrides, "trainer.max_steps=2"), tmp_path / "run")
    assert json.loads((run / "manifest.json").read_text())["model"]["loaded_models"] == models


def test_dynamic_sampling_fills_a_batch_with_groups_that_differ(tmp_path):
    run = train(job(tmp_path, *GRPO_RUN, *SHORT, "method.rollouts.dynamic_sampling=5"), tmp_path / "run")
    found = rows(run)
    groups = {row["prompt_id"]: [] for row in found}
    for row in found:
        groups[row["prompt_id"]].append(row["reward"])
    assert len(groups) == 8
    assert all(len(set(rewards)) == 2 for rewards in groups.values())


def test_a_reward_that_tells_nothing_apart_is_refused_under_dynamic_sampling(tmp_path):
    overrides = ("method.rollouts.dynamic_sampling=5", "reward.pattern=nowhere_in_the_world", "trainer.max_epochs=null")
    with pytest.raises(UserError, match="20 batches of prompts in a row gave nothing to learn from"):
        train(job(tmp_path, *GRPO_RUN, *SHORT, *overrides), tmp_path / "run")


def test_t24_masked_completions_teach_nothing(tmp_path):
    """Nearly all are cut off at 12 tokens: then nearly nothing is learnt from, and a step without any is no NaN."""
    overrides = (*GRPO_RUN, "method.rollouts.truncated=mask", "rollout.sampling.max_new_tokens=2", *SHORT)
    run = train(job(tmp_path, *overrides), tmp_path / "run")
    assert all(row["weight"] == float(row["finish_reason"] == "stop") for row in rows(run))
    assert metrics(run)[1]["train/loss/total"] == pytest.approx(0.0, abs=1e-6)
    assert all(value == value for value in metrics(run)[1].values())


def test_a_large_kl_skips_the_steps_that_are_left(tmp_path):
    overrides = (*ONLINE, "method=grpo", "method.rollouts.epochs=8", "optim.lr=1e-2", "schedule=constant")
    short = metrics(train(job(tmp_path, *overrides, "method.rollouts.max_kl_nats=1e-3"), tmp_path / "short"))
    whole = metrics(train(job(tmp_path, *overrides), tmp_path / "whole"))
    written = [step for step, row in short.items() if "train/reward/total" in row]
    assert len(written) > len([step for step, row in whole.items() if "train/reward/total" in row])


def test_a_step_without_a_completion_to_learn_from_has_no_kl(tmp_path):
    overrides = (
        "method.rollouts.truncated=mask",
        "method.rollouts.max_kl_nats=1e-3",
        "rollout.sampling.max_new_tokens=2",
    )
    run = train(job(tmp_path, *GRPO_RUN, *SEVERAL, *overrides, *SHORT), tmp_path / "run")
    assert set(metrics(run)) == {1, 2}


def test_two_processes_go_on_between_two_lines_of_the_log(tmp_path):
    """What was written since the last line is in the first process's sums; the other must have the names too."""
    overrides = (*GRPO_RUN, *SEVERAL, "hardware=cpu_ddp2", "trainer.log_every_n_steps=3")
    whole = train_forked(job(tmp_path, *overrides), tmp_path / "whole")
    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    (whole / "checkpoints" / "step-000002").rename(broken / "checkpoints" / "step-000002")
    train_forked(job(tmp_path, *overrides, f"resume={broken}"), tmp_path / "unused")
    name = "train/reward/total"
    assert metrics(broken)[3][name] == pytest.approx(metrics(whole)[3][name])


def test_an_adaptive_coefficient_follows_its_target():
    """Ziegler et al.: 1 + clip(KL / target - 1, -.2, .2) * n / horizon."""
    kl = KLPenalty(coefficient=0.1, place="reward", estimator="k1", target_nats=2.0, horizon=100)
    kl.after_batch(sequence_kl_nats=10.0, num_sequences=50)
    assert kl.coefficient == pytest.approx(0.1 * 1.1)
    kl.after_batch(sequence_kl_nats=1.9, num_sequences=50)
    assert kl.coefficient == pytest.approx(0.1 * 1.1 * (1 - 0.05 * 0.5))


def test_a_horizon_that_could_turn_the_coefficients_sign_is_refused():
    """At the start the KL is near 0, so that the very first batch takes off the most: .2 * n / horizon."""
    kl = KLPenalty(coefficient=0.1, place="reward", estimator="k1", target_nats=6.0, horizon=20)
    with pytest.raises(ConfigError, match=r"horizon: got 20, expected more than 25\.6 with 128 completions"):
        kl.check_batch(128)
    kl.check_batch(64)
    kl.after_batch(sequence_kl_nats=0.0, num_sequences=64)
    assert kl.coefficient > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.kl.target_nats=5", "method.kl.horizon=6"), r"method\.kl\.horizon: got 6, expected more than 6\.4"),
        (("method.rollouts.group_size=1",), r"method\.rollouts\.group_size: got 1, expected at least 2"),
        (("rollout.sampling.top_p=0.9",), r"rollout\.sampling\.top_p: got 0\.9, expected 1\.0 in training"),
        (("rollout.sampling.top_k=5",), r"rollout\.sampling\.top_k"),
        (("rollout.sampling.min_p=0.1",), r"rollout\.sampling\.min_p"),
        (("rollout.sampling.bad_words=[x]",), r"rollout\.sampling\.bad_words: got \['x'\], expected \[\] in training"),
        (("rollout.sampling.temperature=0",), r"rollout\.sampling\.temperature: got 0"),
        (("reference=none",), r"reference: got 'none', expected a reference for method\.kl"),
        (("method/kl=none",), r"reference: got 'a reference', expected none"),
        (("method.kl.estimator=k1",), r"method\.kl\.estimator: got 'k1', expected k2 or k3 or k3_importance"),
        (("method.kl.target_nats=5",), r"method\.kl\.horizon: got None"),
        (("method.rollouts.truncated=bootstrap",), r"expected keep or mask without a critic"),
        (("method.rollouts.max_kl_nats=1",), r"method\.rollouts\.max_kl_nats: got 1"),
        (("method.ratio=sequence_mean", "method.normaliser=token"), r"method\.normaliser: got 'token'"),
        (("rollout.sampling.max_new_tokens=300",), "do not fit the model's context of 256"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(tmp_path, overrides, message):
    with pytest.raises((ConfigError, UserError, InstantiationException), match=message):
        train(job(tmp_path, *GRPO_RUN, *SHORT, *overrides), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=grpo", "reference=precomputed"), "its completions are in no cache|Its completions are in no cache"),
        (("method=grpo", "critic=separate"), "critic: got 'SeparateCritic', expected none"),
        (("method=ppo", "critic=value_head", "method.critic_warmup_steps=3"), r"method\.critic_warmup_steps: got 3"),
        (("method=ppo", "critic=none"), "critic: got 'none', expected a critic"),
    ],
)
def test_combinations_are_refused_before_anything_is_loaded(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        validate(job(tmp_path, *ONLINE, *overrides), "train")


def test_without_a_reward_nothing_can_be_learnt(tmp_path):
    overrides = ("method=grpo", "reward=none", "rollout.sampling.max_new_tokens=4", *SHORT)
    with pytest.raises(ConfigError, match="reward: got None, expected a reward"):
        train(job(tmp_path, *overrides), tmp_path / "run")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_pass_that_ends_early_ends_where_it_did(tmp_path, at):
    """Dynamic sampling takes several batches of prompts for a step: a pass has fewer steps than it might have."""
    overrides = (
        *GRPO_RUN,
        "method.rollouts.dynamic_sampling=3",
        "data.train.num_records=48",
        "trainer.max_steps=-1",
        "trainer.max_epochs=2",
        "callbacks.checkpoint.every_n_steps=1",
    )
    MethodTester(overrides, uses_reference=False).check_resume_is_bitwise(tmp_path, at=at)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("data.micro_batch_size=2",), r"data\.micro_batch_size: got 2, expected 4, as when"),
        (("method.rollouts.epochs=3",), r"method\.rollouts\.epochs: got 3, expected 2, as when"),
    ],
)
def test_a_run_is_resumed_with_the_same_steps_only(tmp_path, change, key):
    run = train(job(tmp_path, *GRPO_RUN, *SEVERAL, "trainer.max_steps=2"), tmp_path / "run")
    with pytest.raises(ConfigError, match=key):
        train(
            job(tmp_path, *GRPO_RUN, *SEVERAL, *change, f"resume={run / 'checkpoints' / 'step-000002'}"), tmp_path / "x"
        )


def test_a_masked_completion_is_in_no_pair():
    """The best is masked: the second best meets the worst."""
    found = experience([1.0, 0.5, 0.0, 0.2], [[0.1], [0.1], [0.1], [0.1]], group_size=4)
    found = replace(found, weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    method = SimpleNamespace(pairing="best_worst", min_margin=0.0)
    chosen, rejected = OnlinePairs.pairs(method, found, torch.tensor([0]))
    assert (chosen.tolist(), rejected.tolist()) == ([1], [2])


def test_pairs_have_no_ratio_that_could_be_too_large(tmp_path):
    overrides = ("method=online_dpo", "method.rollouts.epochs=2", "method.rollouts.max_kl_nats=1")
    with pytest.raises((ConfigError, InstantiationException), match=r"method\.rollouts\.max_kl_nats"):
        train(job(tmp_path, *ONLINE, *overrides, *SHORT), tmp_path / "run")


def test_greedy_completions_are_refused_by_pairs_too(tmp_path):
    overrides = ("method=online_dpo", "rollout.sampling.temperature=0", *SHORT)
    with pytest.raises((ConfigError, InstantiationException), match=r"rollout\.sampling\.temperature: got 0"):
        train(job(tmp_path, *ONLINE, *overrides), tmp_path / "run")


def test_the_kl_of_pairs_is_of_one_temperature(tmp_path):
    overrides = ("method=online_dpo", "rollout.sampling.temperature=0.5", *SHORT)
    run = train(job(tmp_path, *ONLINE, *overrides), tmp_path / "run")
    assert metrics(run)[1]["train/kl/policy_reference_nats"] == pytest.approx(0.0, abs=1e-4)


def test_a_reward_that_returns_nan_names_the_completion(tmp_path, monkeypatch):
    from alignment.rewards.regex import RegexReward

    real = RegexReward.score

    def broken(self, rollouts):
        rewards = real(self, rollouts)
        return replace(rewards, total=(float("nan"), *rewards.total[1:]))

    monkeypatch.setattr(RegexReward, "score", broken)
    with pytest.raises(UserError, match="nan"):
        train(job(tmp_path, *GRPO_RUN, *SHORT), tmp_path / "run")


def test_an_export_is_the_policy_without_its_value_head(tmp_path):
    run_dir = train(job(tmp_path, *ONLINE, "method=ppo", "critic=value_head", "trainer.max_steps=1"), tmp_path / "run")
    start = train(job(tmp_path, *GRPO_RUN, "trainer.max_steps=1"), tmp_path / "start")
    assert exported(run_dir).keys() == exported(start).keys()
