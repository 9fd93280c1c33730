from loss_tester import LossTester

from alignment.losses.sft import sft_loss

TESTER = LossTester(
    loss=sft_loss, twin=lambda *, token_logps: 0.0 - token_logps, inputs=("token_logps",), settings=({},)
)


def test_proofs():
    TESTER.check_all()
