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
    ),
    *_bugs(
        "ops/logprobs.py",
        ("the gradient's sign is flipped", "-grad_logps[chunk, None]", "grad_logps[chunk, None]", _LOGPS),
        (
            "the target gets no gradient",
            "delta.scatter_add_(-1, targets[chunk, None], delta.new_full((len(delta), 1), -1.0))",
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
            "grad * (ctx.head.slope(delta) / total)",
            "grad * ctx.head.slope(delta)",
            _LOGPS,
        ),
        ("the soft cap has no slope", "delta *= slope", "pass", _LOGPS),
        ("the scale has no slope (T12)", "grad = grad * slope", "pass", _LOGPS),
        ("the slope forgets the temperature", "slope = self.scale / self.temperature", "slope = self.scale", _LOGPS),
        (
            "the bias is ignored (T12)",
            "rows @ weight.T if bias is None else torch.addmm(bias * factor, rows, weight.T)",
            "rows @ weight.T",
            _LOGPS,
        ),
        ("the bias is not scaled (T12)", "torch.addmm(bias * factor", "torch.addmm(bias", _LOGPS),
        ("the scale is ignored (T12)", "factor = self.scale / (", "factor = 1 / (", _LOGPS),
        (
            "the temperature is ignored (T16)",
            "(self.temperature if self.softcap is None else self.softcap)",
            "(1.0 if self.softcap is None else self.softcap)",
            _LOGPS,
        ),
        ("the bias gets no gradient", "grad_bias = _add_product(grad_bias, delta.T, grad)", "pass", _LOGPS),
        ("only one chunk counts (T12)", "if total is None else total.addmm_(left, right)", "", _LOGPS),
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
        "models/layout.py",
        ("auto trusts everything", "if text.model_type not in tested:", "if False:", _LAYOUTS),
        ("a state goes over the border", 'getattr(model, "_is_stateful", False)', "False", _LAYOUTS),
        ("a leak is let through", "if not error <= tolerance:", "if False:", _LAYOUTS),
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
        ("packed rows are not balanced", "tokens + int(lengths[record])", "tokens + 1", _PLAN),
        (
            "ranks take one another's records",
            "micro_batches[rank :: geometry.world_size]",
            "micro_batches[:: geometry.world_size]",
            _PLAN,
        ),
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
            "return self._score if self._every is None else None",
            "return self._score",
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
            "            module.reshard()\n",
            "            pass\n",
            f"{_REFRESH}::test_two_processes_agree_with_one",
        ),
    ),
)

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
        "methods/offline.py",
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
        "models/memory.py",
        ("moments are always fp32", "* bytes_a_trained_number / shards", "* 4 / shards", "tests/models/test_memory.py"),
    ),
)

MUTANTS = (*_LOSSES, *_OPS, *_MODELS, *_METHODS, *_PIPELINE)
