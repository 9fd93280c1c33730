"""Which tokens a likelihood is of, on log-probs made by hand: the prompt's are scored too, or are not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.orpo import ORPO
from alignment.methods.sft import SFT
from alignment.methods.terms import Term
from alignment.types import PreferenceBatch, SFTBatch, TokenLogps

PARTS = Parts(
    bundle=SimpleNamespace(adapter=None),
    optimizer=None,
    schedule=None,
    cache_dir=None,
    reward=None,
    rollout=None,
    seed=0,
)
#: Two pairs: chosen of 1 + 2 and 2 + 1 tokens (prompt + completion), rejected of 1 + 1 and 2 + 2.
SEQUENCES = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
IN_COMPLETION = [False, True, True, False, False, True, False, True, False, False, True, True]
LOGPS = [-9.0, -1.0, -2.0, -8.0, -7.0, -3.0, -9.0, -4.0, -8.0, -7.0, -0.5, -0.25]


def scored(*, prompts: bool) -> TokenLogps:
    logps, index, mask = torch.tensor(LOGPS), torch.tensor(SEQUENCES), torch.tensor(IN_COMPLETION)
    if prompts:
        return TokenLogps(logps, index, 4, mask)
    return TokenLogps(logps[mask], index[mask], 4)


def pairs(*weights: float) -> PreferenceBatch:
    return PreferenceBatch(ids=("a", "b"), weights=torch.tensor(weights), counts={}, tokens=None, margins=None)


def nll(*, prompts: bool, normaliser: str, weights=(1.0, 1.0)):
    return chosen_nll_term(
        policy=scored(prompts=prompts), batch=pairs(*weights), normaliser=normaliser, coefficient=0.5
    )


def counted(term: Term) -> list[float]:
    """The values that count; rejected tokens are there with a weight of 0."""
    return term.values[term.weights > 0].tolist()


def test_every_chosen_token_is_an_item():
    term = nll(prompts=False, normaliser="token")
    assert (term.per, term.coefficient) == ("chosen_tokens", 0.5)
    assert counted(term) == [1.0, 2.0, 3.0]
    assert counted(nll(prompts=True, normaliser="token")) == [9.0, 1.0, 2.0, 8.0, 7.0, 3.0]


def test_every_pair_is_an_item():
    term = nll(prompts=False, normaliser="sequence")
    assert (term.per, term.coefficient) == ("records", 0.5)
    assert term.values.tolist() == [1.5, 3.0]
    assert nll(prompts=True, normaliser="sequence").values.tolist() == [4.0, 6.0]


@pytest.mark.parametrize("prompts", [False, True])
def test_a_filler_counts_nothing(prompts):
    by_token = nll(prompts=prompts, normaliser="token", weights=(1.0, 0.0))
    assert counted(by_token) == ([9.0, 1.0, 2.0] if prompts else [1.0, 2.0])
    assert nll(prompts=prompts, normaliser="sequence", weights=(1.0, 0.0)).weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("prompts", [False, True])
def test_orpos_odds_and_rewards_never_see_the_prompt(prompts):
    method = ORPO(
        odds_ratio_coefficient=0.5,
        nll_over="prompt_and_completion" if prompts else "completion",
        nll_normaliser="token",
        parts=PARTS,
    )
    assert method.scores_prompt is prompts
    method.policy = lambda tokens: scored(prompts=prompts)
    terms = method.terms(pairs(1.0, 1.0))
    assert terms.metrics["reward/chosen"][0].tolist() == [-0.75, -1.5]
    assert terms.metrics["reward/rejected"][0].tolist() == [-2.0, -0.1875]
    assert terms.metrics["length/chosen_tokens"][0].tolist() == [2.0, 1.0]
    # log(p / (1 - p)) of p = exp(-1.5), exp(-4): by hand
    assert terms.metrics["odds/log_ratio_nats"][0][0].item() == pytest.approx(-1.2475176 + 3.9815149, abs=1e-5)
    assert terms.loss["odds_ratio"].coefficient == 0.5
    assert terms.loss["nll"].coefficient == 1.0
    assert terms.loss["nll"].weights.sum() == (6 if prompts else 3)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("normaliser", ["token", "sequence"])
def test_sft_learns_prompts_where_asked(prompts, normaliser, monkeypatch):
    monkeypatch.setattr(SFT, "is_logged", False)
    method = SFT(normaliser=normaliser, train_on_prompt=prompts, parts=PARTS)
    assert method.scores_prompt is prompts
    policy = scored(prompts=prompts)
    # Greedy decoding would write what is likelier than exp(-2), in prompts too.
    method.policy = lambda tokens, entropy, rank: replace(policy, is_greedy=policy.token_logps > -2)
    batch = SFTBatch(ids=tuple("abcd"), weights=torch.tensor([1.0, 1.0, 1.0, 0.0]), counts={}, tokens=None)
    terms = method.terms(batch)
    term = terms.loss["nll"]
    if normaliser == "sequence":
        assert term.per == "records"
        assert term.values.tolist() == ([4.0, 6.0, 6.5, 3.9375] if prompts else [1.5, 3.0, 4.0, 0.375])
    else:
        assert term.per == "tokens"
        assert (term.values * term.weights).sum().item() == (43.0 if prompts else 10.0)
    # What is logged of completions is the same either way.
    for name, mean in (("logps/completion_mean_nats", -10 / 4), ("policy/token_accuracy", 1 / 4)):
        values, weights = terms.metrics[name]
        assert ((values * weights).sum() / weights.sum()).item() == pytest.approx(mean)
    assert terms.metrics["length/completion_tokens"][0].tolist() == [2.0, 1.0, 1.0, 2.0]
