from alignment.losses.sft import sft_loss

from loss_tester import LossTester

TESTER = LossTester(
    loss=sft_loss, twin=lambda *, token_logps: 0.0 - token_logps, inputs=("token_logps",), settings=({},)
)


def test_proofs():
    TESTER.check_all()
