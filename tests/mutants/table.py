"""The bugs that the tests must find: each a text of one file, replaced by another, and the tests that fail then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIGN = "the sign is flipped"


@dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        file: Below the project's root.
        name: What is wrong, in words, with the trap's number where it is a known one.
        old: Occurs exactly once in the file.
        new: What takes its place.
        tests: Files or test ids, at least one of which must fail.
    """

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]


def stale() -> list[str]:
    """Returns a line for each mutant whose text is not there exactly once, or whose tests are gone."""
    problems: list[str] = []
    for mutant in MUTANTS:
        path = ROOT / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            problems.append(f"{mutant.file}: {mutant.name}: its text occurs {count} times, expected once")
        tests = [test.partition("::") for test in mutant.tests]
        problems += [f"{mutant.file}: {mutant.name}: no test {file}" for file, _, _ in tests if not _holds(file, "")]
        problems += [f"{file}: no {name}" for file, _, name in tests if _holds(file, "") and not _holds(file, name)]
    return problems


def _holds(file: str, test: str) -> bool:
    path = ROOT / file
    return path.is_file() and f"def {test.partition('[')[0]}" in path.read_text(encoding="utf-8")


def _loss(name: str, *bugs: tuple[str, str, str]) -> tuple[Mutant, ...]:
    tests = (f"tests/losses/test_{name}.py",)
    return tuple(Mutant(f"alignment/losses/{name}.py", bug, old, new, tests) for bug, old, new in bugs)


def _bugs(file: str, *bugs: tuple[str, str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(f"alignment/{file}", bug, old, new, tuple(tests.split())) for bug, old, new, tests in bugs)


_LOSSES = (
    *_loss(
        "sft",
        (SIGN, "return -token_logps", "return token_logps"),
        ("the cross-entropy is halved", "return -token_logps", "return -0.5 * token_logps"),
    ),
    *_loss(
        "dpo",
        (SIGN, "beta * (chosen_log_ratio - rejected_log_ratio)", "beta * (rejected_log_ratio - chosen_log_ratio)"),
        ("the chosen side is dropped", "(chosen_log_ratio - rejected_log_ratio)", "(-rejected_log_ratio)"),
        ("the rejected side is dropped", "(chosen_log_ratio - rejected_log_ratio)", "(chosen_log_ratio)"),
        ("beta is ignored", "logits = beta * (", "logits = ("),
        ("the flipped term is dropped", " - label_smoothing * F.logsigmoid(-logits)", ""),
        ("label smoothing scales nothing", "-(1 - label_smoothing) * F.logsigmoid(logits)", "-F.logsigmoid(logits)"),
    ),
    *_loss(
        "ipo",
        (SIGN, "(chosen_log_ratio - rejected_log_ratio - 1", "(rejected_log_ratio - chosen_log_ratio - 1"),
        ("the chosen reference is dropped", "policy_chosen_logps - reference_chosen_logps", "policy_chosen_logps"),
        (
            "the rejected reference is dropped",
            "policy_rejected_logps - reference_rejected_logps",
            "policy_rejected_logps",
        ),
        ("tau is ignored", "1 / (2 * tau)", "1 / 2"),
        ("the target is not halved", "1 / (2 * tau)", "1 / tau"),
    ),
    *_loss(
        "cpo",
        (
            SIGN,
            "(policy_chosen_sum_logps - policy_rejected_sum_logps)",
            "(policy_rejected_sum_logps - policy_chosen_sum_logps)",
        ),
        ("beta is ignored", "logits = beta * (", "logits = ("),
        ("label smoothing is ignored", "if label_smoothing:", "if False:"),
        ("the flipped term is dropped", " - label_smoothing * F.logsigmoid(-logits)", ""),
    ),
    *_loss(
        "simpo",
        (SIGN, "return -F.logsigmoid(", "return F.logsigmoid("),
        (
            "the sides are exchanged",
            "(policy_chosen_logps - policy_rejected_logps)",
            "(policy_rejected_logps - policy_chosen_logps)",
        ),
        ("gamma is ignored", "rejected_logps) - gamma)", "rejected_logps))"),
        ("gamma rewards", "rejected_logps) - gamma)", "rejected_logps) + gamma)"),
        ("beta is ignored", "beta * (policy", "(policy"),
    ),
    *_loss(
        "orpo",
        (SIGN, "return -F.logsigmoid(", "return F.logsigmoid("),
        ("odds are probabilities", "below_zero - torch.log(-torch.expm1(below_zero))", "below_zero"),
        ("log(1 - p) has the wrong sign", "below_zero - torch.log(", "below_zero + torch.log("),
        ("infinite near p = 1 (T30)", "mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)", "mean_logps"),
    ),
    *_loss(
        "kto",
        (
            SIGN,
            "policy_sum_logps - reference_sum_logps - z0.detach()",
            "reference_sum_logps - policy_sum_logps - z0.detach()",
        ),
        ("the reference is dropped", "policy_sum_logps - reference_sum_logps", "policy_sum_logps"),
        ("z0 is dropped (T31)", " - z0.detach()", ""),
        ("z0 is added (T31)", " - z0.detach()", " + z0.detach()"),
        ("z0 has a gradient (T31)", "z0.detach()", "z0"),
        ("desirable_weight is ignored", "desirable_weight * torch.sigmoid(-beta", "torch.sigmoid(-beta"),
        ("undesirable_weight is ignored", "undesirable_weight * torch.sigmoid(beta", "torch.sigmoid(beta"),
        ("beta is ignored", "torch.sigmoid(-beta * above)", "torch.sigmoid(-above)"),
    ),
    *_loss(
        "reward_model",
        (SIGN, "chosen_rewards - rejected_rewards - margins", "rejected_rewards - chosen_rewards - margins"),
        ("margins are ignored", "rejected_rewards - margins", "rejected_rewards"),
        ("margins reward", "rejected_rewards - margins", "rejected_rewards + margins"),
        ("soft labels are ignored", "-probabilities * F.logsigmoid(logits)", "-F.logsigmoid(logits)"),
        ("the other vote is dropped", " - (1 - probabilities) * F.logsigmoid(-logits)", ""),
        (
            "the centre is of the difference",
            "(chosen_rewards + rejected_rewards).square()",
            "(chosen_rewards - rejected_rewards).square()",
        ),
    ),
    *_loss(
        "prm",
        (SIGN, "return -labels * right", "return labels * right"),
        ("right and wrong are exchanged", "wrong, right = step_logits", "right, wrong = step_logits"),
        ("wrong steps teach nothing", " - (1 - labels) * wrong", ""),
    ),
    *_loss(
        "aot",
        (
            SIGN,
            "(above[counts].sort().values - below[counts].sort().values)",
            "(below[counts].sort().values - above[counts].sort().values)",
        ),
        ("nothing is sorted above", "above[counts].sort().values", "above[counts]"),
        ("nothing is sorted below", "below[counts].sort().values", "below[counts]"),
        ("fillers are sorted in", "counts = weights > 0", "counts = weights > -1"),
        ("the reference's margin is dropped", " + reference_margin\n", "\n"),
        ("beta is ignored", "logits = beta * (", "logits = ("),
        ("the flipped term is dropped", " - label_smoothing * F.logsigmoid(-logits)", ""),
    ),
    *_loss(
        "apo",
        (SIGN, "(-beta * chosen_log_ratio).sigmoid()", "(beta * chosen_log_ratio).sigmoid() * 1"),
        ("zero: rejected rise", "+ (beta * rejected_log_ratio).sigmoid()", "+ (-beta * rejected_log_ratio).sigmoid()"),
        (
            "down: chosen rise",
            "return (beta * chosen_log_ratio).sigmoid()",
            "return (-1 * beta * chosen_log_ratio).sigmoid()",
        ),
        ("down: the margin is dropped", " + (beta * (rejected_log_ratio - chosen_log_ratio)).sigmoid()", ""),
    ),
    *_loss(
        "bco",
        (
            SIGN,
            "-F.logsigmoid(beta * chosen_log_ratio - reward_shift)",
            "-F.logsigmoid(reward_shift - beta * chosen_log_ratio)",
        ),
        ("the shift is ignored", "beta * chosen_log_ratio - reward_shift", "beta * chosen_log_ratio"),
        ("rejected rise", "reward_shift - beta * rejected_log_ratio", "beta * rejected_log_ratio - reward_shift"),
    ),
    *_loss(
        "discopop",
        (SIGN, "beta * (chosen_log_ratio - rejected_log_ratio)", "beta * (rejected_log_ratio - chosen_log_ratio)"),
        ("the logistic part is dropped", "return logistic + exponential", "return exponential"),
        ("the exponential part is dropped", "return logistic + exponential", "return logistic"),
        ("the parts' weights are exchanged", "(-logits / tau).sigmoid()", "(logits / tau).sigmoid()"),
        ("tau is ignored", "(F.logsigmoid(logits / tau) - logits)", "(F.logsigmoid(logits) - logits)"),
        ("beta is ignored", "logits = beta * (", "logits = ("),
    ),
    *_loss(
        "divergences",
        (SIGN, "return log_ratio\n", "return -log_ratio\n"),
        ("forward KL: the exponent's sign", "1 - (-log_ratio).clamp(", "1 - (log_ratio).clamp("),
        ("JS: without log 2", "math.log(2) + F.logsigmoid(log_ratio)", "F.logsigmoid(log_ratio)"),
        ("JS: the sign of the ratio", "F.logsigmoid(log_ratio)", "F.logsigmoid(-log_ratio)"),
        ("alpha is no divisor", ".expm1() / alpha", ".expm1()"),
        ("alpha is no exponent", "(-alpha * log_ratio)", "(-log_ratio)"),
    ),
    *_loss(
        "dpop",
        (
            SIGN,
            "(chosen_log_ratio - rejected_log_ratio - penalty * fall)",
            "(rejected_log_ratio - chosen_log_ratio - penalty * fall)",
        ),
        ("the penalty is ignored", " - penalty * fall", " - fall"),
        ("the penalty rewards", " - penalty * fall", " + penalty * fall"),
        ("a rise is punished", "fall = (-chosen_log_ratio)", "fall = chosen_log_ratio"),
        ("beta is ignored", "F.logsigmoid(beta * (", "F.logsigmoid(("),
    ),
    *_loss(
        "exo",
        (SIGN, "beta * (chosen_log_ratio - rejected_log_ratio)", "beta * (rejected_log_ratio - chosen_log_ratio)"),
        ("the chosen side is dropped", "return chosen + rejected", "return rejected"),
        ("the rejected side is dropped", "return chosen + rejected", "return chosen"),
        ("label smoothing is ignored above", " - math.log1p(-label_smoothing)", ""),
        ("label smoothing is ignored below", " - math.log(label_smoothing)", ""),
        ("beta is ignored", "logits = beta * (", "logits = ("),
    ),
    *_loss(
        "hinge",
        (SIGN, "margin - beta * (", "margin + beta * ("),
        ("the margin is ignored", "(margin - beta", "(1 - beta"),
        ("beta is ignored", "margin - beta * (", "margin - ("),
        ("nothing is cut off", ".clamp(min=0)", ""),
    ),
    *_loss(
        "nca",
        (SIGN, "-F.logsigmoid(chosen) -", "F.logsigmoid(chosen) -"),
        (
            "nothing holds the chosen side",
            "(F.logsigmoid(-chosen) + F.logsigmoid(-rejected))",
            "F.logsigmoid(-rejected)",
        ),
        ("the rejected side is dropped", "(F.logsigmoid(-chosen) + F.logsigmoid(-rejected))", "F.logsigmoid(-chosen)"),
        ("the noise weighs twice", "0.5 * (F", "(F"),
        (
            "beta is ignored",
            "chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio",
            "chosen, rejected = chosen_log_ratio, rejected_log_ratio",
        ),
    ),
    *_loss(
        "robust",
        (SIGN, "beta * (chosen_log_ratio - rejected_log_ratio)", "beta * (rejected_log_ratio - chosen_log_ratio)"),
        ("conservative instead of robust", "- label_smoothing * flipped", "+ label_smoothing * flipped"),
        ("nothing is rescaled", " / (1 - 2 * label_smoothing)", ""),
        ("beta is ignored", "logits = beta * (", "logits = ("),
    ),
    *_loss(
        "sppo",
        (SIGN, "(chosen_log_ratio - target)", "(chosen_log_ratio + target)"),
        ("the rejected target's sign", "(rejected_log_ratio + target)", "(rejected_log_ratio - target)"),
        ("the chosen side is dropped", "(chosen_log_ratio - target).square() + ", ""),
        ("the rejected side is dropped", " + (rejected_log_ratio + target).square()", ""),
        ("beta is ignored", "1 / (2 * beta)", "1 / 2"),
    ),
    *_loss(
        "wpo",
        (
            SIGN,
            "(chosen_alignment_nats + rejected_alignment_nats)",
            "(-chosen_alignment_nats - rejected_alignment_nats)",
        ),
        ("weights have a gradient", ".detach().exp()", ".exp()"),
        ("weights may be above 1", ".clamp(max=1)", ""),
        ("the rejected side is dropped", "(chosen_alignment_nats + rejected_alignment_nats)", "chosen_alignment_nats"),
    ),
    *_loss(
        "policy_gradient",
        (SIGN, "return -torch.where(advantages < 0, falls, rises)", "return torch.where(advantages < 0, falls, rises)"),
        (
            "the ratio's sign",
            "    rises = log_ratio.clamp(",
            "    log_ratio = -log_ratio\n    rises = log_ratio.clamp(",
        ),
        ("nothing is clipped above", "log_ratio.clamp(max=math.log1p(clip_high))", "log_ratio"),
        (
            "an overflowing ratio has a gradient of NaN",
            "rises = log_ratio.clamp(max=math.log1p(clip_high))",
            "rises = log_ratio.exp().clamp(max=1 + clip_high).log()",
        ),
        ("both sides are clipped above", "clamp(max=math.log1p(clip_high))", "clamp(max=math.log1p(clip_low))"),
        (
            "nothing is clipped below",
            "falls = log_ratio.clamp(min=_lower_bound(clip_low), max",
            "falls = log_ratio.clamp(min=-99.0, max",
        ),
        (
            "the lower bound is a log",
            "math.log1p(-clip_low) if",
            "-clip_low if",
        ),
        ("no lower bound is an error", " if clip_low < 1 else -math.inf", ""),
        ("the dual clip is ignored", "max=None if dual_clip is None else math.log(dual_clip)", "max=None"),
        (
            "the bounds are exchanged",
            "torch.where(advantages < 0, falls, rises)",
            "torch.where(advantages < 0, rises, falls)",
        ),
        ("the advantage is dropped", "falls, rises).exp() * advantages", "falls, rises).exp()"),
        ("a pulled-back ratio counts as clipped", "(advantages > 0) & (log_ratio > ", "(log_ratio > "),
        ("what is too low does not count", "return too_high | too_low", "return too_high"),
        ("what is too high does not count", "return too_high | too_low", "return too_low"),
        ("CISPO: the sign", "return -weight * advantages * policy_logps", "return weight * advantages * policy_logps"),
        (
            "CISPO: the weight has a gradient",
            "(policy_logps - old_logps).detach().exp()",
            "(policy_logps - old_logps).exp()",
        ),
        ("CISPO: no upper bound", ", max=1 + clip_high)", ", max=1e9)"),
        ("CISPO: the upper bound is TRL's", ", max=1 + clip_high)", ", max=clip_high)"),
        ("CISPO: no lower bound", "None if clip_low is None else 1 - clip_low", "None if clip_low is None else 0.0"),
        ("CISPO: the advantage is dropped", "-weight * advantages * policy_logps", "-weight * policy_logps"),
        ("REINFORCE: the sign", "return -(policy_logps - old_logps).exp()", "return (policy_logps - old_logps).exp()"),
        (
            "REINFORCE: the old policy is forgotten",
            "return -(policy_logps - old_logps).exp() * advantages",
            "return -(policy_logps - policy_logps.detach()).exp() * advantages",
        ),
        ("GSPO: a sum for a mean", " / sequence_index.bincount(minlength=num_sequences).clamp(min=1)", ""),
        ("GSPO: an empty sequence is a NaN", ".clamp(min=1)\n", "\n"),
        (
            "GSPO: the old policy is dropped",
            "    log_ratio = policy_logps - old_logps\n    sums",
            "    log_ratio = policy_logps\n    sums",
        ),
    ),
    *_loss(
        "value",
        (SIGN, "return squares / 2", "return -squares / 2"),
        ("the loss is not halved", "return squares / 2", "return squares"),
        ("the clip is ignored", "if clip is not None:", "if False:"),
        ("the smaller of the two", "torch.maximum(squares", "torch.minimum(squares"),
        ("the clip is about 0", "old_values + (values - old_values)", "(values - old_values)"),
        ("the clipped one alone", "torch.maximum(squares, (near - returns).square())", "(near - returns).square()"),
    ),
)

_ONLINE = "tests/advantages"
_AHEAD = "tests/methods/test_one_step_off.py"
_GRPO, _RLOO, _GAE = f"{_ONLINE}/test_grpo.py", f"{_ONLINE}/test_rloo.py", f"{_ONLINE}/test_ppo.py"
_REINFORCE, _PAIRS = f"{_ONLINE}/test_reinforce_pp.py", f"{_ONLINE}/test_online_dpo.py"
_GRADIENTS = f"{_ONLINE}/test_policy_gradients.py"
_ADVANTAGES = (
    *_bugs(
        "advantages/moments.py",
        (
            SIGN,
            "above_least - above_least.mean(-1, keepdim=True)",
            "above_least.mean(-1, keepdim=True) - above_least",
            _GRPO,
        ),
        (
            "equal rewards leave a rounding error (T21)",
            "    above_least = values - values.amin(-1, keepdim=True)\n",
            "    above_least = values\n",
            _GRPO,
        ),
        ("nothing is centred", "above_least - above_least.mean(-1, keepdim=True)", "above_least", _GRPO),
        ("the other std", "correction=correction", "correction=1 - correction", _GRPO),
        ("a small spread vanishes in its square", "/ _nonzero(spread)", "/ 1.0", _GRPO),
        ("the std of the scaled values", "return spread * unit.std", "return unit.std", _GRPO),
        ("no spread is a NaN (T21)", "return values / _nonzero(by)", "return values / by", _GRPO),
        ("an epsilon in the std (T21)", "return values / _nonzero(by)", "return values / (by + 1e-4)", _GRPO),
        (
            "the sign of what is whitened is flipped",
            "by=deviation(counted, correction=0)",
            "by=-deviation(counted, correction=0)",
            _REINFORCE,
        ),
        ("the unbiased std", "by=deviation(counted, correction=0)", "by=deviation(counted, correction=1)", _REINFORCE),
        ("what does not count is whitened in (T10)", "counted = values[counts]", "counted = values", _REINFORCE),
        ("fractions pass", "if not torch.equal(counts.to(weights.dtype), weights):", "if False:", _REINFORCE),
    ),
    *_bugs(
        "advantages/ragged.py",
        ("nothing is discounted", "column + discount * following", "column + following", _GAE),
        ("the future is dropped", "column + discount * following", "column", _GAE),
        ("the future is subtracted", "column + discount * following", "column - discount * following", _GAE),
        ("sums run forwards", "reversed(padded.unbind(1))", "padded.unbind(1)", _GAE),
        ("sums come out backwards", "torch.stack(sums[::-1], dim=1)", "torch.stack(sums, dim=1)", _GAE),
        ("an empty completion passes", "if (lengths < 1).any():", "if (lengths < 0).any():", _GAE),
        ("lengths need not add up", "if lengths.sum() != num_tokens:", "if False:", _GAE),
        ("the end is the next one's start", "lengths.cumsum(0) - 1", "lengths.cumsum(0) - lengths", _GAE),
    ),
    *_bugs(
        "advantages/grpo.py",
        (SIGN, "by=deviation(compared, correction=1)", "by=-deviation(compared, correction=1)", _GRPO),
        ("the population's std", "correction=1", "correction=0", _GRPO),
        (
            "groups are scaled by the batch",
            'rewards if scale == "group" else rewards.flatten()',
            "rewards.flatten()",
            _GRPO,
        ),
        ("the batch is scaled by groups", 'rewards if scale == "group" else rewards.flatten()', "rewards", _GRPO),
        (
            "the batch's rewards are centred first",
            "else rewards.flatten()",
            "else above_mean.flatten()",
            _GRPO,
        ),
        ("none is scaled", 'if scale == "none":', 'if scale == "nothing":', _GRPO),
        ("one sample passes", "if samples < 2:", "if samples < 1:", _GRPO),
        ("every group has a spread", "rewards.amax(1) > rewards.amin(1)", "rewards.amax(1) >= rewards.amin(1)", _GRPO),
    ),
    *_bugs(
        "advantages/rloo.py",
        (SIGN, "centred(rewards) * (samples", "-centred(rewards) * (samples", _RLOO),
        ("the baseline knows the sample", " * (samples / (samples - 1))", "", _RLOO),
        ("the baseline knows the sample, in expectation", " * (samples / (samples - 1))", " * 1.0", _GRADIENTS),
        ("one sample passes", "if samples < 2:", "if samples < 1:", _RLOO),
    ),
    *_bugs(
        "advantages/reinforce_pp.py",
        ("the discount is ignored", "discount=gamma", "discount=1.0", _REINFORCE),
        ("nothing is centred", "    return centred(rewards)", "    return rewards", _REINFORCE),
    ),
    *_bugs(
        "advantages/ppo.py",
        (SIGN, "gamma * next_values - values", "gamma * next_values + values", _GAE),
        ("the next value is two tokens ahead (T25)", "values.roll(-1)", "values.roll(-2)", _GAE),
        (
            "the baseline is the state after the token (T25)",
            "- values\n    advantages",
            "- next_values\n    advantages",
            f"{_GAE} {_GRADIENTS}",
        ),
        ("the next completion's value leaks in", ".index_copy(0, ends, bootstrap_values)", "", _GAE),
        ("a cut is an end (T24)", "index_copy(0, ends, bootstrap_values)", "index_fill(0, ends, 0)", _GAE),
        ("gamma is dropped from delta", "token_rewards + gamma * next_values", "token_rewards + next_values", _GAE),
        ("lambda is ignored", "discount=gamma * lam", "discount=gamma", _GAE),
        ("gamma is dropped from the sum", "discount=gamma * lam", "discount=lam", _GAE),
        (
            "the returns are the advantages",
            "return advantages, advantages + values",
            "return advantages, advantages",
            _GAE,
        ),
        (
            "the returns' sign",
            "return advantages, advantages + values",
            "return advantages, advantages - values",
            _GAE,
        ),
    ),
    *_bugs(
        "advantages/token_rewards.py",
        (
            "the score is paid at the first token (T23)",
            "(0, places, rewards)",
            "(0, places - lengths + 1, rewards)",
            _REINFORCE,
        ),
        (SIGN, "(0, places, rewards)", "(0, places, -rewards)", _REINFORCE),
    ),
    *_bugs(
        "advantages/online_dpo.py",
        (SIGN, "return chosen[is_pair], rejected[is_pair]", "return rejected[is_pair], chosen[is_pair]", _PAIRS),
        ("ties are pairs", "(margins > 0) & ", "", _PAIRS),
        ("the margin is ignored", " & (margins >= min_margin)", "", _PAIRS),
        ("the margin itself is too small", "margins >= min_margin", "margins > min_margin", _PAIRS),
        ("groups are mixed", "first = samples * torch.arange", "first = 1 * torch.arange", _PAIRS),
        ("a negative margin passes", "if min_margin < 0:", "if False:", _PAIRS),
    ),
)

_REDUCE, _LOGPS, _KL = "tests/ops/test_reduce.py", "tests/ops/test_logprobs.py", "tests/ops/test_kl.py"
_OPS = (
    *_bugs(
        "ops/reduce.py",
        ("weights of fillers are ignored (T8)", "torch.where(weights > 0, values, 0.0) * weights", "values", _REDUCE),
        ("a filler's NaN gets in", "torch.where(weights > 0, values, 0.0) * weights", "values * weights", _REDUCE),
        ("fractions of a weight are ignored", "values, 0.0) * weights", "values, 0.0)", _REDUCE),
        ("shares are forgotten (T8)", "* (shares / count)", "/ count", _REDUCE),
        (
            "the mean of a piece (T8)",
            "_weighted(values, weights).sum() * (shares",
            "_weighted(values, weights).mean() * (shares",
            _REDUCE,
        ),
        ("an empty step is a NaN", "if count <= 0:", "if count < 0:", _REDUCE),
    ),
    *_bugs(
        "ops/kl.py",
        (SIGN, "return log_ratio\n", "return -log_ratio\n", _KL),
        ("k2 is not halved", "log_ratio.square() / 2", "log_ratio.square()", _KL),
        ("k3 of the other direction", "(-log_ratio).expm1() + log_ratio", "log_ratio.expm1() - log_ratio", _KL),
        ("k3 without its control variate", "(-log_ratio).expm1() + log_ratio", "(-log_ratio).expm1()", _KL),
        ("the importance ratio is dropped", "importance_log_ratio.exp() * k3", "k3", _KL),
        ("the importance ratio's sign", "importance_log_ratio.exp() * k3", "(-importance_log_ratio).exp() * k3", _KL),
        (
            "the importance ratio has no gradient (T20)",
            "importance_log_ratio.exp() * k3",
            "importance_log_ratio.detach().exp() * k3",
            _KL,
        ),
    ),
    *_bugs(
        "ops/logprobs.py",
        ("the gradient's sign is flipped", "-grad_logps[chunk, None]", "grad_logps[chunk, None]", _LOGPS),
        (
            "the target gets no gradient",
            "part.scatter_add_(-1, places[:, None], part.new_full((len(part), 1), -1.0))",
            "pass",
            _LOGPS,
        ),
        (
            "the target of the last chunk gets no gradient",
            "powers.scatter_add_(-1, targets[-len(powers) :, None], -total), total",
            "powers, total",
            _LOGPS,
        ),
        (
            "what was kept is not normalised",
            "grad * (head.slope / total)",
            "grad * head.slope",
            _LOGPS,
        ),
        ("the soft cap has no slope", "part.mul_(bent)", "pass", _LOGPS),
        ("the scale has no slope (T12)", "grad = grad * head.slope", "pass", _LOGPS),
        ("the slope forgets the temperature", "return self.scale / self.temperature", "return self.scale", _LOGPS),
        (
            "the bias is ignored (T12)",
            "rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)",
            "rows @ weight.T",
            _LOGPS,
        ),
        ("the bias is not scaled (T12)", "_accurate(bias) * factor", "_accurate(bias)", _LOGPS),
        ("the scale is ignored (T12)", "factor = self.scale / (", "factor = 1 / (", _LOGPS),
        (
            "the temperature is ignored (T16)",
            "(self.temperature if self.softcap is None else self.softcap)",
            "(1.0 if self.softcap is None else self.softcap)",
            _LOGPS,
        ),
        (
            "the bias gets no gradient",
            "grad_bias = _add_product(grad_bias, delta.T, head.factor(grad))",
            "pass",
            _LOGPS,
        ),
        ("only one chunk counts (T12)", "if total is None:", "if True:", _LOGPS),
        ("no scale in half precision", "projected if factor == 1.0 else projected.mul_(factor)", "projected", _LOGPS),
        ("no bias in half precision", "projected if bias is None else projected.add_(bias)", "projected", _LOGPS),
        ("sums in half precision", "left.float() @ right.float()", "(left @ right).float()", _LOGPS),
        ("what is ruled out makes the entropy no number", "rows.clamp_min(_NO_PROBABILITY)", "rows.clone()", _LOGPS),
        ("the likeliest token has rank 1", "torch.gt(row, bound", "torch.ge(row, bound", _LOGPS),
        ("the chunk before stays", "powers = None  # makes room for the next chunk", "pass", _LOGPS),
        ("every token is greedy", "(at_target >= largest)[:, 0]", "(at_target <= largest)[:, 0]", _LOGPS),
        (
            "sums in the weights' type",
            "return tensor if tensor.dtype == torch.float64 else tensor.float()",
            "return tensor",
            _LOGPS,
        ),
    ),
)

_PATH, _BUNDLE, _ADAPTERS = (
    "tests/models/test_logprob_model.py",
    "tests/models/test_bundle.py",
    "tests/models/test_adapters.py",
)
_KERNELS = "tests/models/test_kernels.py"
_RANKS, _TOKENS = "tests/data/test_reference_cache_ranks.py", "tests/data/test_tokenise.py"
_ERRORS = "tests/utils/test_errors.py"
_LAYOUTS, _PLAN = "tests/models/test_layouts.py", "tests/data/test_plan.py"
_DPO, _RUNS = "tests/methods/test_dpo.py", "tests/methods/test_dpo_runs.py"
_REFRESH = "tests/methods/test_reference_refresh.py"
_MODELS = (
    *_bugs(
        "models/attention.py",
        (
            "a completion does not see its prompt (T9)",
            "torch.cat([k, branch_k], 2)",
            "torch.cat([0 * k, branch_k], 2)",
            _LAYOUTS,
        ),
        (
            "a completion sees what follows (T9)",
            "hidden = mask.triu(offset + 1)",
            "hidden = mask.triu(offset + 2)",
            _LAYOUTS,
        ),
        ("a window one too wide", "mask.tril(offset - window)", "mask.tril(offset - window - 1)", _LAYOUTS),
        ("no window in a trunk", "(window is None or columns <= window)", "True", _LAYOUTS),
        (
            "side by side, completions stand in for one another (T9)",
            "index_select(0, segments.home)",
            "index_select(0, segments.home.flip(0))",
            _LAYOUTS,
        ),
        ("padded rows get another attention", "if segments is None:", "if False:", _LAYOUTS),
    ),
    *_bugs(
        "models/kernels.py",
        (
            "flex: a completion does not see its prompt",
            "((key >= own[query]) | in_trunk)",
            "(key >= own[query])",
            _KERNELS,
        ),
        ("flex: a window one too wide", "width if window is None else window)", "window or width) - 1", _KERNELS),
        ("flex: a graph for each window", "position[key] > hidden_up_to[query]", "(query - key < 20)", _KERNELS),
        ("varlen of torch 2.11: heads without keys", "if not shares:", "if False:", _KERNELS),
        ("flex: blocks of prompts are skipped", "(trunk_end > trunk).long()", "0 * trunk", _KERNELS),
        ("flex: the block of a place itself is skipped", "last // BLOCK + 1", "last // BLOCK", _KERNELS),
        ("varlen: a window one too wide", "window - 1, 0)", "window, 0)", _KERNELS),
        ("varlen: keys of another completion", "places=there(places)", "places=there(places.flip(0))", _KERNELS),
    ),
    *_bugs(
        "models/layout.py",
        ("a kernel that differs is let through", "if not off <= 0.05:", "if False:", _KERNELS),
        ("auto trusts everything", "if text.model_type not in tested:", "if False:", _LAYOUTS),
        ("a state goes over the border", 'getattr(model, "_is_stateful", False)', "False", _LAYOUTS),
        ("a leak is let through", "if not error <= tolerance:", "if False:", _LAYOUTS),
    ),
    *_bugs(
        "rollout/engine.py",
        (
            "weights are cast for every token",
            "torch.set_autocast_cache_enabled(True)",
            "torch.set_autocast_cache_enabled(False)",
            "tests/methods/test_writer.py",
        ),
    ),
    *_bugs(
        "models/references.py",
        ("a rank's part is lost", "in enumerate(folders):", "in enumerate(folders[1:], 1):", _RANKS),
        ("each rank scores everything", "batches(part, world_size)", "batches(0, 1)", _RANKS),
        (
            "a part is computed after all are there",
            "if ReferenceCache.exists(path):  # while",
            "if False:  # while",
            _RANKS,
        ),
        ("parts stay", "remove(folder, of=folder)", "release(folder)", _RANKS),
    ),
    *_bugs(
        "utils/errors.py",
        (
            "a refusal does not leave its process",
            "expected=self.expected, hint=self.hint), ()",
            "hint=self.hint), ()",
            _ERRORS,
        ),
    ),
    *_bugs(
        "data/tokenise.py",
        (
            "one process whatever the number of records",
            "if processes > 1 else None",
            "if processes > 99 else None",
            _TOKENS,
        ),
    ),
    *_bugs(
        "data/collate.py",
        (
            "positions go on over the border (T9)",
            "np.broadcast_to(column, ids.shape)[is_real]",
            "places[is_real]",
            _LAYOUTS,
        ),
        (
            "the token before in the row predicts (T9)",
            "places[:, :-1][scored[:, 1:]]",
            "places[scored] - 1",
            _LAYOUTS,
        ),
        ("nothing is shared", "if not share:", "if True:", _LAYOUTS),
    ),
    *_bugs(
        "data/plan.py",
        ("packed rows are not balanced", "size + int(sizes[item])", "size + 1", _PLAN),
        ("rows of ranks are not levelled", "if after.size and after.min() < before:", "if False:", _PLAN),
        (
            "ranks are not balanced",
            'np.argsort(-tokens, kind="stable"), tokens,',
            "range(len(tokens)), 0 * tokens,",
            _PLAN,
        ),
        ("padding is no work", "lengths.max() * len(lengths)", "lengths.sum()", _PLAN),
        ("ranks take one another's records", "room=cut.accumulate)[rank]", "room=cut.accumulate)[0]", _PLAN),
    ),
    *_bugs(
        "models/backbone.py",
        ("dropout stays on (T14)", "setattr(part, name, 0.0)", "pass", f"{_PATH} {_BUNDLE}"),
    ),
    *_bugs(
        "models/bundle.py",
        ("the reference trains", "model.requires_grad_(False).eval()", "model.eval()", _BUNDLE),
        (
            "the reference is not sharded (T35)",
            "shard(self.reference.frozen, mesh)",
            "pass",
            f"{_REFRESH}::test_two_processes_agree_with_one {_DPO}::test_two_processes_agree_with_one",
        ),
    ),
    *_bugs(
        "models/references.py",
        (
            "the adapter stays on (T32)",
            "with adapter_disabled(self._policy):\n            return",
            "if True:\n            return",
            f"{_DPO}::test_reference_strategies_agree",
        ),
        (
            "a refresh mixes the wrong way (T36)",
            "old.mul_(1 - self._mix).add_(new, alpha=self._mix)",
            "old.mul_(self._mix).add_(new, alpha=1 - self._mix)",
            f"{_REFRESH}::test_a_soft_refresh_mixes",
        ),
        (
            "a refresh without its shards (T36)",
            "        to_shards(self.frozen)\n",
            "",
            f"{_REFRESH}::test_two_processes_agree_with_one",
        ),
        (
            "a resumed run has the start's reference (T36)",
            "set_model_state_dict(self.frozen, state, options=StateDictOptions(full_state_dict=True))",
            "pass",
            f"{_REFRESH}::test_a_resumed_run_keeps_the_refreshed_reference",
        ),
        (
            "a refreshed copy passes for the start",
            "return self.score if self._every is None else None",
            "return self.score",
            f"{_REFRESH}::test_fresh_samples_do_not_take_it_for_the_start",
        ),
        (
            "a hole in the cache passes",
            "if logps is None or logps.shape != batch.tokens.targets.shape:",
            "if False:",
            _BUNDLE,
        ),
    ),
    *_bugs(
        "models/adapters.py",
        (
            "the adapter stays on (T32)",
            "with model.backbone.disable_adapter():  # type: ignore[operator]\n        yield",
            "yield",
            _ADAPTERS,
        ),
        (
            "tied weights may be untied (T33)",
            "tie_word_embeddings and (saved or targeted)",
            "tie_word_embeddings and False",
            _ADAPTERS,
        ),
        (
            "every rank draws another adapter (T35)",
            "torch.random.default_generator.manual_seed(seed)",
            "torch.random.default_generator.seed()",
            _ADAPTERS,
        ),
    ),
    *_bugs(
        "models/export.py",
        ("the merge forgets the scaling (T33)", "+ module.scaling[adapter] * delta", "+ delta", _ADAPTERS),
        (
            "the adapter is left out (T33)",
            "(state[key].float() + module.scaling[adapter] * delta)",
            "state[key]",
            _ADAPTERS,
        ),
    ),
    *_bugs(
        "models/logprob_model.py",
        ("the head's scale is ignored (T12)", "scale=_logit_scale(model),", "scale=1.0,", _PATH),
        (
            "the soft cap is ignored (T12)",
            'softcap=_text_config(model, "final_logit_softcapping"),',
            "softcap=None,",
            _PATH,
        ),
        ("the head's bias is ignored (T12)", "bias=head.bias,", "bias=None,", _PATH),
        ("the temperature is ignored (T16)", "temperature=temperature,", "temperature=1.0,", _PATH),
        (
            "the base model's head under an adapter (T32)",
            "head.modules_to_save[head.active_adapters[0]] if adapted else head.original_module",
            "head.original_module",
            f"{_ADAPTERS} {_PATH}",
        ),
    ),
    *_bugs(
        "models/sharding.py",
        (
            "a sharded model stays gathered (T36)",
            "    for part in _sharded_parts(model):\n        part.reshard()\n",
            "    pass\n",
            f"{_REFRESH}::test_two_processes_agree_with_one",
        ),
    ),
)

_ONLINE = "tests/methods/test_online.py"
_BASE = "tests/diagnostics/test_monitors.py"
_FRESH = "tests/diagnostics/test_fresh_samples.py"
_CHECKPOINT = "tests/diagnostics/test_checkpoint.py"
_METHODS = (
    *_bugs(
        "methods/base.py",
        (
            "shares forget the ranks (T8)",
            "self.trainer.accumulate_grad_batches * self.trainer.world_size",
            "self.trainer.accumulate_grad_batches",
            f"{_DPO}::test_two_processes_agree_with_one",
        ),
        (
            "shares forget accumulation (T8)",
            "self.trainer.accumulate_grad_batches * self.trainer.world_size",
            "self.trainer.world_size",
            f"{_DPO}::test_accumulation_agrees",
        ),
        (
            "frozen weights are saved",
            "        del state[name]",
            "        pass",
            f"{_CHECKPOINT}::test_a_checkpoint_holds_exactly_what_trains",
        ),
        (
            "the reference is not saved (T36)",
            "self.bundle.reference.state_dict()\n",
            "None\n",
            f"{_REFRESH}::test_a_resumed_run_keeps_the_refreshed_reference",
        ),
        (
            "the reference is never refreshed (T36)",
            "self.bundle.reference.after_step(self.global_step)",
            "pass",
            f"{_REFRESH}::test_after_a_hard_refresh_the_reference_is_the_policy",
        ),
        (
            "the last metrics are not restored",
            "self.trainer.callback_metrics.update(self._loaded_metrics)",
            "pass",
            f"{_FRESH}::test_a_resumed_run_is_measured_like_one_that_was_never_stopped",
        ),
        (
            "the cache is filled in another precision (T14)",
            ", self.trainer.precision_plugin.forward_context():",
            ":",
            f"{_RUNS}::test_cached_log_probs_have_the_precision_of_training",
        ),
    ),
    *_bugs(
        "methods/terms.py",
        (
            "coefficients are ignored",
            "            term.coefficient\n            * global_mean(",
            "            1.0\n            * global_mean(",
            "tests/methods/test_cpo.py::test_every_option_changes_something",
        ),
        (
            "weights of fillers are ignored (T8)",
            "weights=term.weights, count",
            "weights=None, count",
            f"{_DPO}::test_two_processes_agree_with_one",
        ),
        (
            "the denominator is the micro-batch's (T8)",
            "count=batch.counts[term.per]",
            "count=term.weights.sum().item()",
            f"{_DPO}::test_accumulation_agrees",
        ),
    ),
    *_bugs(
        "methods/metrics.py",
        (
            "each rank logs its own mean",
            "            dist.all_reduce(sums)",
            "            pass",
            f"{_DPO}::test_two_processes_agree_with_one",
        ),
    ),
    *_bugs(
        "types.py",
        (
            "prompts count as completions",
            "torch.where(self.in_completion, values, 0.0)",
            "values",
            "tests/methods/test_nll.py",
        ),
        ("the mean is a sum", "return self.sum_logps / self.num_tokens", "return self.sum_logps", _PATH),
    ),
)

_PIPELINE = (
    *_bugs(
        "pipeline/train.py",
        ("callbacks see the step before", "[EndOfBatch()] + [", "[] + [", _BASE),
        (
            "a failure is told in an empty folder",
            "    cfg.paths.run_dir = str(run_dir)\n",
            "",
            f"{_FRESH}::test_a_resumed_run_is_measured_like_one_that_was_never_stopped",
        ),
    ),
    *_bugs(
        "pipeline/folder.py",
        (
            "a resume forgets how the run began",
            "resumed_values(run_dir, values) if goes_on else values",
            "values",
            f"{_CHECKPOINT}::test_a_resumed_run_remembers_how_it_began",
        ),
    ),
    *_bugs(
        "pipeline/trainer.py",
        (
            "a run resumed at its end is not measured",
            "        return False\n",
            "        return super().skip\n",
            f"{_FRESH}::test_a_resumed_run_is_measured_like_one_that_was_never_stopped",
        ),
    ),
    *_bugs(
        "diagnostics/fresh_samples.py",
        (
            "the start is forgotten",
            'self._start_rewards = state_dict["start_rewards"]',
            "pass",
            f"{_FRESH}::test_a_resumed_run_is_measured_like_one_that_was_never_stopped",
        ),
        (
            "held-out prompts are looked up among roll-outs",
            "engine.func is ReplayEngine",
            "False",
            "tests/methods/test_online.py::test_a_replay_is_measured_on_fresh_samples",
        ),
    ),
    *_bugs(
        "methods/online.py",
        (
            "the seed forgets the experience",
            "self.parts.seed, number, attempt)",
            "self.parts.seed, attempt)",
            f"{_ONLINE}::test_the_same_prompt_is_completed_anew_the_next_time",
        ),
        (
            "the seed forgets the run",
            "_seed(options.seed, self.parts.seed, number",
            "_seed(options.seed, 0, number",
            f"{_ONLINE}::test_completions_depend_on_seed_step_prompt_and_sample",
        ),
        (
            "a group of equal rewards is useful",
            "(differ[0] & differ[1] & counts)",
            "counts",
            f"{_ONLINE}::test_dynamic_sampling_fills_a_batch_with_groups_that_differ",
        ),
        (
            "masked tokens count in the denominator",
            "torch.where(learnt, experience.lengths, 0)",
            "experience.lengths",
            f"{_ONLINE}::test_masked_tokens_are_in_no_denominator",
        ),
        (
            "a large KL skips nothing",
            "            self._loader.leave()\n",
            "            pass\n",
            f"{_ONLINE}::test_a_large_kl_skips_the_steps_that_are_left",
        ),
        (
            "the penalty is added (T26)",
            "return self.kl.coefficient * k1(",
            "return -self.kl.coefficient * k1(",
            f"{_ONLINE}::test_t26_the_kl_is_part_of_the_reward_before_the_baseline",
        ),
    ),
    *_bugs(
        "methods/rollout_log.py",
        (
            "every rank's share counts (T10)",
            "torch.full_like(values, self._weight, dtype",
            "torch.full_like(values, 1.0, dtype",
            "tests/methods/test_grpo.py::test_two_processes_agree_with_one",
        ),
    ),
    *_bugs(
        "methods/experience_loader.py",
        (
            "a checkpoint forgets the place (T39)",
            '"place": place if unused else 0',
            '"place": 0',
            "tests/methods/test_grpo.py::test_resume_is_bitwise",
        ),
        (
            "the rest of an experience is lost (T39)",
            "if unused and self._experience is not None else None",
            "if False else None",
            "tests/methods/test_grpo.py::test_resume_is_bitwise",
        ),
        (
            "a pass that ended early goes on after a resume",
            'self._pass_ends = self._resumed and state["pass_ends"]',
            "self._pass_ends = False",
            f"{_ONLINE}::test_a_pass_that_ends_early_ends_where_it_did",
        ),
        (
            "other steps pass",
            'check_same_steps(self._settings, state["settings"])',
            "pass",
            f"{_ONLINE}::test_a_run_is_resumed_with_the_same_steps_only",
        ),
    ),
    *_bugs(
        "methods/writer.py",
        (
            "old log-probs at another temperature (T16)",
            "self.policy(tokens, self.temperature, values",
            "self.policy(tokens, 1.0, values",
            f"{_ONLINE}::test_t16_scoring_has_the_temperature_of_sampling",
        ),
    ),
    *_bugs(
        "methods/policy_gradient.py",
        (
            "the policy trains at another temperature (T16)",
            "self.policy(batch.tokens, self.temperature, entropy",
            "self.policy(batch.tokens, 1.0, entropy",
            f"{_ONLINE}::test_t16_scoring_has_the_temperature_of_sampling",
        ),
        (
            "the KL is no part of the loss",
            'if self.kl is not None and self.kl.place == "loss":',
            "if False:",
            "tests/methods/test_grpo.py::test_step_from_yaml",
        ),
        (
            "Dr. GRPO divides by the length",
            'if self.normaliser == "sequence" else self.longest',
            "if True else self.longest",
            f"{_ONLINE}::test_the_normalisers_are_what_they_say",
        ),
    ),
    *_bugs(
        "methods/policy_gradient.py",
        (
            "stale completions count in full",
            "losses = losses * ratios.importance",
            "losses = losses * 1.0",
            f"{_AHEAD}::test_what_another_policy_wrote_is_weighed",
        ),
        (
            "the KL of stale completions counts in full",
            "self.averaged(values * ratios.importance,",
            "self.averaged(values,",
            f"{_AHEAD}::test_what_another_policy_wrote_is_weighed",
        ),
        (
            "importance upside down",
            "mismatch = old - batch.sampler_logps",
            "mismatch = batch.sampler_logps - old",
            f"{_AHEAD}::test_what_another_policy_wrote_is_weighed",
        ),
    ),
    *_bugs(
        "losses/policy_gradient.py",
        (
            "importance weights have no cap",
            "return log_ratio.clamp(max=math.log(cap)).exp()",
            "return log_ratio.exp()",
            f"{_AHEAD}::test_what_another_policy_wrote_is_weighed",
        ),
    ),
    *_bugs(
        "rollout/ahead.py",
        (
            "an old copy writes",
            "mine.copy_(now)",
            "pass",
            f"{_AHEAD}::test_each_experience_is_written_by_the_policy_of_one_update_before",
        ),
        (
            "the policy itself writes in the background",
            "self._copy = copy.deepcopy(policy).eval()",
            "self._copy = policy",
            f"{_AHEAD}::test_training_does_not_wait_for_what_is_written_meanwhile",
        ),
        (
            "a checkpoint forgets what is being written (T39)",
            "everyone = [[] if self._written is None else self._written.result()]",
            "everyone = [[]]",
            f"{_AHEAD}::test_resume_is_bitwise",
        ),
    ),
    *_bugs(
        "methods/experience_loader.py",
        (
            "prompts that were looked at are lost (T39)",
            'prompts["done"] -= self._stream.num_seen',
            "pass",
            f"{_AHEAD}::test_resume_is_bitwise",
        ),
    ),
    *_bugs(
        "methods/ppo.py",
        (
            "what was cut off is terminal (T24)",
            "torch.where(goes_on, experience.last_values, 0.0)",
            "torch.zeros_like(experience.last_values)",
            f"{_ONLINE}::test_t24_bootstrap_puts_the_critics_word_in_the_rewards_place",
        ),
        (
            "a cut completion has reward and bootstrap (T24)",
            "rewards = torch.where(goes_on, 0.0, experience.rewards)",
            "rewards = experience.rewards",
            f"{_ONLINE}::test_t24_bootstrap_puts_the_critics_word_in_the_rewards_place",
        ),
        (
            "the policy learns while the critic warms up",
            "if self.global_step < self.critic_warmup_steps:",
            "if False:",
            "tests/methods/test_critic.py::test_only_the_critic_learns_while_it_warms_up",
        ),
    ),
    *_bugs(
        "methods/online_pairs.py",
        (
            "pairs are upside down",
            "weights=torch.tensor([weight_of",
            "weights=-torch.tensor([weight_of",
            "tests/methods/test_online_dpo.py::test_step_from_yaml",
        ),
        (
            "a masked completion is ranked",
            "rewards = torch.where(learnt, rewards, mean)",
            "rewards = torch.where(learnt, rewards, rewards)",
            f"{_ONLINE}::test_a_masked_completion_is_in_no_pair",
        ),
        (
            "log-probs of two temperatures",
            "or not draws_from_own_distribution(self.parts.rollout.sampling)",
            "or False",
            f"{_ONLINE}::test_the_kl_of_pairs_is_of_one_temperature",
        ),
    ),
    *_bugs(
        "models/sharding.py",
        (
            "forwards without a backward pass are remembered",
            "            _forget_forwards(model)\n",
            "            pass\n",
            "tests/methods/test_grpo.py::test_two_processes_agree_with_one",
        ),
    ),
    *_bugs(
        "rollout/experience.py",
        (
            "tokens of another completion",
            "(self.starts[places] - (lengths.cumsum(0) - lengths))",
            "(self.starts[places] - lengths.cumsum(0) * 0)",
            f"{_ONLINE}::test_groups_are_taken_out_and_put_together_with_their_tokens",
        ),
        (
            "the order depends on the ranks",
            "return sorted((item for share in everyone for item in share), key=order)",
            "return [item for share in everyone for item in share]",
            "tests/methods/test_grpo.py::test_two_processes_agree_with_one",
        ),
    ),
    *_bugs(
        "diagnostics/health.py",
        (
            "one rank stops alone",
            "dist.all_reduce(is_any_bad, op=dist.ReduceOp.MAX)",
            "pass",
            f"{_BASE}::test_all_processes_stop_at_the_loss_of_one",
        ),
    ),
    *_bugs(
        "diagnostics/monitors.py",
        ("any fall is displacement", " or ratio >= self.min_mass_ratio", "", _BASE),
    ),
    *_bugs(
        "cli/job.py",
        ("a failure outlives success", "    _forget_failure(_run_dir(cfg))\n", "", "tests/cli/test_job.py"),
    ),
    *_bugs(
        "methods/ppo.py",
        (
            "a warm-up counts as steps of the policy",
            "parameter.grad = None",
            "parameter.grad = 0 * parameter",
            "tests/methods/test_critic.py::test_the_policys_first_step_after_the_warm_up_is_a_first_step",
        ),
    ),
    *_bugs(
        "methods/online.py",
        (
            "a penalty makes a dead group useful",
            "(differ[0] & differ[1] & counts)",
            "(differ[1] & counts)",
            f"{_ONLINE}::test_dynamic_sampling_keeps_groups_that_differ_before_and_after_shaping",
        ),
        (
            "masked groups are useful",
            "(differ[0] & differ[1] & counts)",
            "(differ[0] & differ[1])",
            f"{_ONLINE}::test_dynamic_sampling_keeps_groups_that_differ_before_and_after_shaping",
        ),
    ),
    *_bugs(
        "diagnostics/rollout_monitors.py",
        (
            "likeness is taken for diversity",
            "(1 - now, 1 - first) if is_likeness else (now, first)",
            "(now, first)",
            "tests/diagnostics/test_rollout_monitors.py",
        ),
    ),
    *_bugs(
        "methods/kl.py",
        (
            "the coefficient may turn its sign",
            "self.horizon <= largest",
            "self.horizon <= 0",
            f"{_ONLINE}::test_a_horizon_that_could_turn_the_coefficients_sign_is_refused",
        ),
    ),
    *_bugs(
        "rollout/experience.py",
        (
            "what a failed batch lacks is lost",
            "for name in self.components | other.components",
            "for name in self.components",
            f"{_ONLINE}::test_what_a_failed_completion_lacks_is_zero",
        ),
    ),
    *_bugs(
        "rollout/vllm.py",
        (
            "engines draw at once",
            "        with _one_at_a_time:\n",
            "        if True:\n",
            "tests/rollout/test_vllm.py::test_one_engine_at_a_time_has_the_weights",
        ),
    ),
    *_bugs(
        "models/memory.py",
        ("moments are always fp32", "_MOMENTS * bytes_a_moment", "_MOMENTS * 4", "tests/models/test_memory.py"),
    ),
    *_bugs(
        "pipeline/train.py",
        (
            "moments of 8 bits are counted as whole ones",
            "1 if has_small_moments else bytes_a_trained_number",
            "bytes_a_trained_number",
            "tests/methods/test_optimizers.py::test_moments_of_8_bits_are_counted_as_such",
        ),
    ),
)

_HAND = "tests/methods/test_dpo_metrics.py"
_OFFLINE_HAND, _ONLINE_HAND = "tests/methods/test_offline_metrics.py", "tests/methods/test_online_metrics.py"
_CALIBRATION, _NLL = "tests/methods/test_calibration.py", "tests/methods/test_nll.py"
_PRM, _REWARD = "tests/methods/test_prm.py::test_metrics_by_hand", f"{_OFFLINE_HAND}::test_a_reward_model"
_KTO, _TOKENS = f"{_OFFLINE_HAND}::test_kto", f"{_ONLINE_HAND}::test_ratios_clips_and_kl_of_tokens"
_WRITTEN = f"{_ONLINE_HAND}::test_what_completions_are_like"
_TERMS = (
    *_bugs(
        "methods/preference_metrics.py",
        (
            "the margin's sign",
            "chosen_rewards - rejected_rewards",
            "rejected_rewards - chosen_rewards",
            f"{_HAND}::test_dpo",
        ),
        (
            "a tie is right",
            "chosen_rewards > rejected_rewards",
            "chosen_rewards >= rejected_rewards",
            f"{_HAND}::test_dpo",
        ),
        (
            "what is wrong is right",
            "chosen_rewards > rejected_rewards",
            "chosen_rewards < rejected_rewards",
            f"{_HAND}::test_ipo",
        ),
        ("a sum for a mean", "chosen_sums / chosen_lengths", "chosen_sums", f"{_HAND}::test_cpo"),
        (
            "the other side's length",
            "rejected_sums / rejected_lengths",
            "rejected_sums / chosen_lengths",
            f"{_HAND}::test_dpo",
        ),
        (
            "lengths are exchanged",
            "chosen_lengths, rejected_lengths = policy",
            "rejected_lengths, chosen_lengths = policy",
            f"{_HAND}::test_orpo",
        ),
        ("fillers count", "(value.detach(), weights)", "(value.detach(), None)", f"{_HAND}::test_dpo"),
    ),
    *_bugs(
        "methods/dpo.py",
        ("what rises has fallen", "(moved < 0)", "(moved > 0)", f"{_HAND}::test_dpo"),
        (
            "what stays has fallen",
            "(moved < 0)",
            "(moved <= 0)",
            f"{_HAND}::test_a_policy_that_is_its_reference_has_moved_nowhere",
        ),
        ("the mass ratio is upside down", "moved.clamp(max=20)", "(-moved).clamp(max=20)", f"{_HAND}::test_dpo"),
        (
            "the mass ratio is infinite",
            "moved.clamp(max=20)",
            "moved",
            f"{_HAND}::test_the_mass_of_a_completion_far_above_the_reference_is_finite",
        ),
        (
            "the shift's sign",
            "(policy.sum_logps - reference.sum_logps)",
            "(reference.sum_logps - policy.sum_logps)",
            f"{_HAND}::test_dpo",
        ),
        ("rewards forget beta", "chosen_rewards=self.beta * chosen", "chosen_rewards=chosen", f"{_HAND}::test_dpo"),
        (
            "the mean is a sum",
            "scored.mean_logps if self.length_normalised else scored.sum_logps",
            "scored.sum_logps",
            f"{_HAND}::test_dpo_of_means",
        ),
        ("WPO's weights weigh nothing", "losses * pair_weights", "losses * 1.0", f"{_HAND}::test_wpo_weighs_the_pairs"),
        (
            "the likelihood's coefficient is ignored",
            "coefficient=self.nll_coefficient",
            "coefficient=1.0",
            f"{_HAND}::test_a_mixture_and_a_likelihood_are_weighed",
        ),
        (
            "the likelihood's normaliser is ignored",
            "normaliser=self.nll_normaliser",
            'normaliser="sequence"',
            f"{_HAND}::test_a_mixture_and_a_likelihood_are_weighed",
        ),
        (
            "the loss knows no shift",
            "reward_shift=0.0 if self.shift is None",
            "reward_shift=0.0 if True",
            f"{_HAND}::test_the_shift_is_that_of_the_steps_before",
        ),
    ),
    *_bugs(
        "methods/pairwise.py",
        (
            "a mixture's weights are ignored",
            "self.weights[name] * value for",
            "value for",
            f"{_HAND}::test_a_mixture_and_a_likelihood_are_weighed",
        ),
        ("WPO: a sum for a mean", " / policy.num_tokens", "", f"{_HAND}::test_wpo_weighs_the_pairs"),
        (
            "a filler moves the shift",
            "masked_total(rewards, weights)",
            "masked_total(rewards, None)",
            f"{_HAND}::test_the_shift_is_that_of_the_steps_before",
        ),
    ),
    *_bugs(
        "methods/ipo.py",
        (
            "the mean is a sum",
            'scored.mean_logps if self.reduction == "mean" else scored.sum_logps',
            "scored.sum_logps",
            f"{_HAND}::test_ipo",
        ),
        ("rewards forget tau", "chosen_rewards=self.tau * (", "chosen_rewards=(", f"{_HAND}::test_ipo"),
    ),
    *_bugs(
        "methods/cpo.py",
        ("sums are means", "policy.sum_logps.chunk(2)", "policy.mean_logps.chunk(2)", f"{_HAND}::test_cpo"),
        (
            "the likelihood's coefficient is ignored",
            "coefficient=self.nll_coefficient",
            "coefficient=1.0",
            f"{_HAND}::test_cpo",
        ),
        (
            "the likelihood's normaliser is ignored",
            "normaliser=self.nll_normaliser",
            'normaliser="token"',
            f"{_HAND}::test_cpo",
        ),
        (
            "label smoothing is not passed on",
            "label_smoothing=self.label_smoothing",
            "label_smoothing=0.0",
            f"{_HAND}::test_cpo",
        ),
    ),
    *_bugs(
        "methods/simpo.py",
        (
            "the mean is a sum",
            "policy.mean_logps if self.length_normalised else policy.sum_logps",
            "policy.sum_logps",
            f"{_HAND}::test_simpo",
        ),
        (
            "the sum is a mean",
            "policy.mean_logps if self.length_normalised else policy.sum_logps",
            "policy.mean_logps",
            f"{_HAND}::test_simpo",
        ),
        (
            "the ratio is gamma itself",
            "gamma = beta * gamma_beta_ratio",
            "gamma = gamma_beta_ratio",
            f"{_HAND}::test_simpo",
        ),
        (
            "the likelihood's coefficient is ignored",
            "coefficient=self.nll_coefficient",
            "coefficient=1.0",
            f"{_HAND}::test_simpo",
        ),
        ("the likelihood is of pairs", 'normaliser="token"', 'normaliser="sequence"', f"{_HAND}::test_simpo"),
    ),
    *_bugs(
        "methods/orpo.py",
        ("odds are of sums", "policy.mean_logps.chunk(2)", "policy.sum_logps.chunk(2)", f"{_HAND}::test_orpo"),
        ("lambda is ignored", "batch.weights, self.odds_ratio_coefficient)", "batch.weights)", f"{_HAND}::test_orpo"),
        (
            "lambda weighs the likelihood too",
            "coefficient=1.0",
            "coefficient=self.odds_ratio_coefficient",
            f"{_HAND}::test_orpo",
        ),
        (
            "the odds ratio's sign",
            "log_odds(mean_logps=chosen) -",
            "-log_odds(mean_logps=chosen) +",
            f"{_HAND}::test_orpo",
        ),
    ),
    *_bugs(
        "methods/nll.py",
        (
            "the coefficient of pairs is dropped",
            "batch.weights, coefficient)",
            "batch.weights)",
            f"{_NLL}::test_every_pair_is_an_item",
        ),
        (
            "the coefficient of tokens is dropped",
            "weights[policy.sequence_index], coefficient)",
            "weights[policy.sequence_index])",
            f"{_NLL}::test_every_chosen_token_is_an_item",
        ),
        (
            "the normaliser is ignored",
            'if normaliser == "sequence":',
            "if False:",
            f"{_NLL}::test_every_pair_is_an_item",
        ),
        ("a sum for a mean", ".mean_logps.chunk(2)", ".sum_logps.chunk(2)", f"{_NLL}::test_every_pair_is_an_item"),
        (
            "rejected sides are learnt",
            "torch.zeros_like(batch.weights)",
            "torch.ones_like(batch.weights)",
            f"{_NLL}::test_every_chosen_token_is_an_item",
        ),
        (
            "the denominator is that of all tokens (T8)",
            '"chosen_tokens", weights',
            '"tokens", weights',
            f"{_NLL}::test_every_chosen_token_is_an_item",
        ),
    ),
    *_bugs(
        "methods/sft.py",
        (
            "a sum for a mean",
            "scored.sum_by_sequence(losses) / scored.num_tokens",
            "scored.sum_by_sequence(losses)",
            f"{_OFFLINE_HAND}::test_sft",
        ),
        ("accuracy is error", "policy.is_greedy.float()", "(~policy.is_greedy).float()", f"{_OFFLINE_HAND}::test_sft"),
        ("the top five are six", "(policy.ranks < 5)", "(policy.ranks <= 5)", f"{_OFFLINE_HAND}::test_sft"),
        (
            "entropies of fillers count",
            "(policy.entropies, token_weights * completion)",
            "(policy.entropies, completion)",
            f"{_OFFLINE_HAND}::test_sft",
        ),
        (
            "prompts count as completions",
            "(policy.is_greedy.float(), token_weights * completion)",
            "(policy.is_greedy.float(), token_weights)",
            f"{_NLL}::test_sft_learns_prompts_where_asked",
        ),
    ),
    *_bugs(
        "methods/kto.py",
        ("z0 is below 0 (T31)", ".clamp(min=0)", "", f"{_OFFLINE_HAND}::test_z0_is_never_below_nothing"),
        ("z0 is each rank's own (T31)", 'self.trainer.strategy.reduce(total, reduce_op="sum")', "total", _KTO),
        ("z0 counts fillers (T31)", "(w * (p.sum_logps", "((p.sum_logps", _KTO),
        (
            "z0 is a mean over the micro-batch (T31)",
            'total / batch.counts["records"]',
            "total / batch.weights.sum()",
            _KTO,
        ),
        (
            "desirable_weight is not passed on",
            "            desirable_weight=self.desirable_weight",
            "            desirable_weight=1.0",
            _KTO,
        ),
        (
            "undesirable_weight is not passed on",
            "undesirable_weight=self.undesirable_weight",
            "undesirable_weight=1.0",
            _KTO,
        ),
        ("rewards are upside down", "self.beta * (policy.sum_logps", "-self.beta * (policy.sum_logps", _KTO),
        (
            "the labels are exchanged",
            '"chosen": batch.weights * batch.labels',
            '"chosen": batch.weights * ~batch.labels',
            _KTO,
        ),
        (
            "the margin's sign",
            'means["reward/chosen"] - means["reward/rejected"]',
            'means["reward/rejected"] - means["reward/chosen"]',
            _KTO,
        ),
    ),
    *_bugs(
        "methods/reward_model.py",
        (
            "margins are not passed on",
            "margins=batch.margins",
            "margins=0 * batch.margins",
            f"{_REWARD}_reads_margins_votes_and_its_coefficient",
        ),
        (
            "votes are not passed on",
            "hard if batch.probabilities is None else batch.probabilities",
            "hard",
            f"{_REWARD}_reads_margins_votes_and_its_coefficient",
        ),
        (
            "the centring's coefficient is ignored",
            "batch.weights, self.centering_coefficient)",
            "batch.weights)",
            f"{_REWARD}_reads_margins_votes_and_its_coefficient",
        ),
        (
            "a divided vote has a right order",
            "batch.weights * (probabilities != 0.5)",
            "batch.weights",
            f"{_REWARD}_reads_margins_votes_and_its_coefficient",
        ),
        ("what is wrong is right", "(margin > 0)", "(margin < 0)", _REWARD),
        ("a tie is right", "(margin > 0)", "(margin >= 0)", _REWARD),
        ("lengths are exchanged", "lengths[0]", "lengths[1]", _REWARD),
        (
            "calibration of the rejected side",
            "probabilities=margin.sigmoid()",
            "probabilities=(-margin).sigmoid()",
            f"{_OFFLINE_HAND}::test_a_reward_models_calibration_is_of_held_out_votes",
        ),
    ),
    *_bugs(
        "methods/prm.py",
        ("the first error is never found", "== first_false(is_right", "!= first_false(is_right", _PRM),
        ("the last error is the first", '"amin")', '"amax", include_self=False)', _PRM),
        ("right is wrong", "(says_right == is_right)", "(says_right != is_right)", _PRM),
        ("even odds are a no", "probabilities >= 0.5", "probabilities > 0.5", _PRM),
        ("recall of all steps", "weights * ~is_right", "weights", _PRM),
        ("fillers are located", "(located.float(), batch.weights)", "(located.float(), None)", _PRM),
        (
            "hard labels are soft",
            'batch.labels if self.labels == "soft" else (batch.labels > 0).float()',
            "batch.labels",
            _PRM,
        ),
        ("hard labels need half of the roll-outs", "(batch.labels > 0)", "(batch.labels >= 0.5)", _PRM),
        (
            "the loss reads soft labels",
            "prm_loss(step_logits=logits, labels=labels)",
            "prm_loss(step_logits=logits, labels=batch.labels)",
            _PRM,
        ),
    ),
    *_bugs(
        "methods/calibration.py",
        ("there is no error", "gap = outcome - confidence", "gap = 0 * (outcome - confidence)", _CALIBRATION),
        ("a no is a yes", "outcome = torch.where(says_yes, labels, 1 - labels)", "outcome = labels", _CALIBRATION),
        ("a no has no confidence", "torch.where(says_yes, predicted, 1 - predicted)", "predicted", _CALIBRATION),
        ("certainty is in no bin", ".clamp(max=NUM_BINS - 1)", "", _CALIBRATION),
        ("one bin", "NUM_BINS = 10", "NUM_BINS = 1", _CALIBRATION),
        ("bins cancel", "sum(map(abs, bins))", "abs(sum(bins))", _CALIBRATION),
        ("fillers count", "gap, 0.0), weights)", "gap, 0.0), None)", _CALIBRATION),
    ),
    *_bugs(
        "methods/policy_gradient.py",
        ("the ratio is upside down", "(logps - old).exp()", "(old - logps).exp()", _TOKENS),
        ("k3 of the other direction", "moved = k3(old - logps)", "moved = k3(logps - old)", _TOKENS),
        (
            "the mismatch has a sign",
            "(old - batch.sampler_logps).abs().exp()",
            "(old - batch.sampler_logps).exp()",
            _TOKENS,
        ),
        (
            "what is clipped is not",
            "(clipped.float(), ratios.weights)",
            "((~clipped).float(), ratios.weights)",
            _TOKENS,
        ),
        ("clips are watched at the other bound", "clip_high=self.clip[1]", "clip_high=self.clip[0]", _TOKENS),
        ("masked tokens are logged", "{name: (value, weights) for", "{name: (value, None) for", _TOKENS),
        (
            "what is capped is not",
            "ratios.importance >= (",
            "ratios.importance < (",
            f"{_ONLINE_HAND}::test_what_was_written_earlier_is_weighed_and_the_mismatch_unsaid",
        ),
    ),
    *_bugs(
        "diagnostics/rollouts.py",
        ("groups that differ are dead", "~has_spread", "has_spread", _WRITTEN),
        ("whole completions are cut off", "experience.truncated.float()", "1 - experience.truncated.float()", _WRITTEN),
        ("a variance for a spread", ".std(1)", ".var(1)", _WRITTEN),
        (
            "the KL's sign",
            "experience.sums(experience.log_ratios)",
            "-experience.sums(experience.log_ratios)",
            _WRITTEN,
        ),
        (
            "raw rewards are shaped",
            '"reward/total": experience.raw_rewards',
            '"reward/total": experience.rewards',
            _WRITTEN,
        ),
        (
            "what is unexplained is explained",
            "1 - (returns - values)",
            "(returns - values)",
            f"{_ONLINE_HAND}::test_how_well_a_critic_foresees",
        ),
        (
            "masked tokens are foreseen",
            "experience.values[learnt], experience.returns[learnt]",
            "experience.values, experience.returns",
            f"{_ONLINE_HAND}::test_how_well_a_critic_foresees",
        ),
    ),
    *_bugs(
        "methods/online.py",
        (
            "useful groups are the others",
            "num_useful / experience.num_groups",
            "1 - num_useful / experience.num_groups",
            f"{_ONLINE_HAND}::test_what_was_written_is_counted_with_its_useful_groups",
        ),
    ),
    *_bugs(
        "methods/base.py",
        (
            "the gradient's norm is another",
            "torch.nn.utils.get_total_norm(gradients)",
            "torch.nn.utils.get_total_norm(gradients, 1.0)",
            f"{_OFFLINE_HAND}::test_what_any_step_says_of_its_optimiser_and_speed",
        ),
        (
            "speed since the start",
            "(tokens - tokens_then)",
            "tokens",
            f"{_OFFLINE_HAND}::test_what_any_step_says_of_its_optimiser_and_speed",
        ),
    ),
)

MUTANTS = (*_LOSSES, *_ADVANTAGES, *_OPS, *_MODELS, *_METHODS, *_PIPELINE, *_TERMS)
