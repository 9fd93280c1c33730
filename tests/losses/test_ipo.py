import numpy as np
import pytest
import torch

from alignment.losses.ipo import ipo_loss

from loss_tester import LossTester

ARGUMENTS = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)


def twin(*, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, tau):
    margin = np.log(
        np.exp(policy_chosen_logps - policy_rejected_logps) / np.exp(reference_chosen_logps - reference_rejected_logps)
    )
    return margin**2 - margin / tau + 1 / (4 * tau**2)


TESTER = LossTester(loss=ipo_loss, twin=twin, inputs=ARGUMENTS, settings=({"tau": 0.1}, {"tau": 0.5}, {"tau": 1.0}))


def test_proofs():
    # A square overflows no float at these sizes; the twin's expansion loses some digits.
    TESTER.check_gradient()
    TESTER.check_items_are_independent()
    TESTER.check_extremes()
    for setting in TESTER.settings:
        values = TESTER.random_inputs()
        expected = twin(**{name: value.numpy() for name, value in values.items()}, **setting)
        np.testing.assert_allclose(ipo_loss(**values, **setting).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_one_deterministic_pair_ends_where_the_paper_says(tau):
    """E1: over two answers with a uniform reference, pi(y_w) = sigma(1 / (2 tau)), where DPO would go to 1."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    reference = torch.full((1,), 0.5, dtype=torch.float64).log()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        logps = logits.log_softmax(0)
        loss = ipo_loss(
            policy_chosen_logps=logps[:1],
            policy_rejected_logps=logps[1:],
            reference_chosen_logps=reference,
            reference_rejected_logps=reference,
            tau=tau,
        ).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = {0.1: 0.99331, 0.5: 0.73106, 1.0: 0.62246}[tau]
    assert logits.softmax(0)[0].item() == pytest.approx(expected, abs=1e-5)
