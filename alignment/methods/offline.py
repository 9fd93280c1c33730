"""Methods that learn from a fixed data set: what they share is how they are validated."""

from __future__ import annotations

from alignment.methods.base import Parts
from alignment.methods.metrics import MetricSums, with_prefix
from alignment.methods.terms import TermsMethod
from alignment.types import Batch, PreferenceBatch, Role, TokenLogps


class OfflineMethod(TermsMethod):
    """Base of the methods whose held-out records have a loss too."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.val_sums = MetricSums()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the same metrics on held-out records."""
        self.collect_terms(self.val_sums, self.terms(batch))

    def on_validation_epoch_start(self) -> None:
        """Drops what an interrupted validation left behind."""
        self.val_sums.clear()

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all held-out records."""
        if not self.trainer.sanity_checking:
            self.publish(with_prefix("val", self.means(self.val_sums)))


class PreferenceMethod(OfflineMethod):
    """Base of the methods that read pairs."""

    batch_type = PreferenceBatch

    def reference_logps(self, batch: PreferenceBatch) -> TokenLogps:
        """Returns the reference's log-probs in the policy's layout, without gradient."""
        assert Role.REFERENCE in self.roles
        assert self.bundle.reference is not None
        token_logps = self.bundle.reference.batch_logps(batch)
        tokens = batch.tokens
        return TokenLogps(token_logps, tokens.sequence_index, tokens.num_sequences, tokens.in_completion)
