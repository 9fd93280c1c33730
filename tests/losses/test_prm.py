import numpy as np
import torch

from alignment.losses.prm import prm_loss

from loss_tester import LossTester


def loss(*, wrong_logits, right_logits, label):
    return prm_loss(
        step_logits=torch.stack([wrong_logits, right_logits], -1), labels=torch.full_like(wrong_logits, label)
    )


def twin(*, wrong_logits, right_logits, label):
    right = np.exp(right_logits) / (np.exp(right_logits) + np.exp(wrong_logits))
    return -label * np.log(right) - (1 - label) * np.log(1 - right)


def test_proofs():
    LossTester(
        loss=loss,
        twin=twin,
        inputs=("wrong_logits", "right_logits"),
        settings=tuple({"label": label} for label in (0.0, 0.25, 1.0)),
        low=-5.0,
        high=5.0,
    ).check_all()


def test_hard_labels_are_the_cross_entropy_of_two_classes():
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(prm_loss(step_logits=logits, labels=classes.double()), expected)
