"""Which metrics become panels, in which order, and what their axes say."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.report.summary import GAIN, KL, LENGTH, LOG_RATIO, REWARD, WIN_RATE


@dataclass(frozen=True)
class Panel:
    """A small figure: one metric over steps.

    Attributes:
        metric: Its name without the split.
        title: What it is.
        unit: The unit of its axis.
        scale: Panels with the same scale share their range.
        limits: The range of the axis; ``None`` fits the values.
        reference: Where chance or no change is: a dotted line.
    """

    metric: str
    title: str
    unit: str
    scale: str = ""
    limits: tuple[float, float] | None = None
    reference: float | None = None


MAIN = (
    Panel("loss/total", "Loss", "nats"),
    Panel("reward/accuracy", "Accuracy: chosen above rejected", "share", limits=(-0.03, 1.03), reference=0.5),
    Panel("reward/margin", "Implicit reward margin", "nats"),
    Panel("reward/chosen", "Implicit reward, chosen", "nats", "implicit"),
    Panel("reward/rejected", "Implicit reward, rejected", "nats", "implicit"),
    Panel("logps/chosen_shift_nats", "Chosen log-prob against the reference", "nats"),
    Panel("logps/chosen_sum_nats", "Log-prob of chosen", "nats", "logps"),
    Panel("logps/rejected_sum_nats", "Log-prob of rejected", "nats", "logps"),
    Panel("logps/completion_mean_nats", "Log-prob of completions", "nats a token"),
    Panel("optim/grad_norm", "Gradient norm", "before clipping"),
    Panel("optim/learning_rate", "Learning rate", "per update"),
    Panel("speed/tokens_per_second", "Speed", "tokens/s"),
)
FRESH = (
    Panel(REWARD, "Reward", "reward"),
    Panel(GAIN, "Gain on the same prompts", "reward"),
    Panel(WIN_RATE, "Win-rate against the start", "share", limits=(-0.03, 1.03), reference=0.5),
    Panel(KL, "KL(policy ‖ start)", "nats"),
    Panel(LOG_RATIO, "Mean log-ratio to the start (no KL)", "nats"),
    Panel(LENGTH, "Completion length", "tokens"),
    Panel("length/truncated_share", "Cut off at the token limit", "share"),
    Panel("entropy/token_nats", "Entropy", "nats a token"),
    Panel("diversity/distinct_2", "Distinct bigrams", "share"),
    Panel("diversity/self_bleu", "Self-BLEU (1: all alike)", "share"),
)
# Counters: straight lines that the budget table tells better.
NOT_DRAWN = ("budget/",)
UNITS = {
    "_nats": "nats",
    "_tokens": "tokens",
    "_seconds": "s",
    "_share": "share",
    "_bytes": "bytes",
    "_rate": "share",
}


def ordered_panels(metrics: list[str], known: tuple[Panel, ...]) -> tuple[list[Panel], list[Panel]]:
    """Returns the panels of the known metrics that are there, and those of the others by name."""
    drawn = [metric for metric in metrics if not metric.startswith(NOT_DRAWN)]
    listed = {panel.metric for panel in known}
    main = [panel for panel in known if panel.metric in drawn]
    return main, [named_panel(metric) for metric in sorted(set(drawn) - listed)]


def named_panel(metric: str) -> Panel:
    """Returns a panel for any metric: title and unit from its name.

    >>> named_panel("length/chosen_tokens")
    Panel(metric='length/chosen_tokens', title='length / chosen', unit='tokens', scale='', limits=None, reference=None)
    """
    stem, unit = metric, ""
    for suffix, name in UNITS.items():
        if metric.endswith(suffix):
            stem, unit = metric.removesuffix(suffix), name
    return Panel(metric, stem.replace("_", " ").replace("/", " / "), unit)
