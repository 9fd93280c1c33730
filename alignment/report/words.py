"""The result in words: the title and the headline."""

from __future__ import annotations

from alignment.report.compare import Comparison
from alignment.report.format import bounds, decimals_for, fixed, listing, plural
from alignment.report.names import guard_of, is_judge, method_of, model_of, section
from alignment.report.read import Interval
from alignment.report.summary import GAIN, KL, REWARD, GroupRow, Summary

MOST_SENTENCES = 3
#: What a judge's last metrics say of it.
_JUDGED = {
    "val/reward/accuracy": "{} of the pairs in the labelled order",
    "val/process/step_accuracy": "{} of the steps judged as labelled",
    "val/process/first_error_accuracy": "the first wrong step found in {} of the solutions",
    "val/calibration/expected_error": "expected calibration error {}",
}
STATUS_WORDS = {"silent": "killed or stuck", "unknown": "of unknown status"}


def title(summaries: list[Summary], comparison: Comparison) -> str:
    """Returns what was compared, in one line."""
    methods = list(dict.fromkeys(method_of(summary.run) for summary in summaries))
    models = list(dict.fromkeys(model_of(summary.run) for summary in summaries))
    what = listing([method for method in methods if method], most=4) or "Runs"
    model = f" of {models[0]}" if len(models) == 1 and models[0] else ""
    if len(summaries) == 1:
        return f"{what}{model}"
    swept = [key.rpartition(".")[2] for key in comparison.swept]
    over = f" over {listing(swept)}" if 0 < len(swept) <= 3 else ""
    return f"{what}{model}: {plural(len(summaries), 'run')}{over}"


def headline(summaries: list[Summary], groups: list[GroupRow], labels: list[str]) -> list[str]:
    """Returns the result in a few sentences."""
    if len(summaries) == 1:
        return [single_run_sentence(summaries[0])]
    statuses = [summary.status for summary in summaries]
    counts = [f"{statuses.count(s)} {STATUS_WORDS.get(s, s)}" for s in dict.fromkeys(statuses)]
    sentences = [f"{plural(len(summaries), 'run')}: {listing(counts)}."]
    measured = [row for row in groups if row.reward is not None]
    if len(measured) > 1 and any(row.num_seeds > 1 for row in groups):
        return [*sentences, _best_group_sentence(measured)]
    if len(summaries) <= MOST_SENTENCES:
        pairs = zip(summaries, labels, strict=True)
        return [*sentences, *(f"{label}: {single_run_sentence(summary)}" for summary, label in pairs)]
    return [*sentences, _best_run_sentence(summaries, labels)]


def single_run_sentence(summary: Summary) -> str:
    """Returns what the reward did from the start to the last evaluation."""
    start, final = summary.start_metric(REWARD), summary.final_metric(REWARD)
    what = f"{guard_of(summary.run)}{_on_prompts(summary)}"
    decimals = decimals_for([start, final])
    if final is None and start is None:
        return _judge_sentence(summary) or "No reward was measured on fresh samples, so there is no result to state."
    if final is None or summary.final is None:
        return f"Only the start was evaluated: {what} is {_with_bounds(start, decimals)}."
    after = f", after {plural(summary.final.step, 'update')}" if summary.run.curves else ""
    where = f"{_at_kl(summary.final_metric(KL))}{after}"
    if start is None:
        return f"{what} was {_with_bounds(final, decimals)}{where}; the start was not evaluated."
    gain = summary.final_metric(GAIN)
    is_clear = _is_clear(start, final, gain)
    verb = ("rose from" if final.mean > start.mean else "fell from") if is_clear else "went from"
    doubt = "" if is_clear else "; the intervals leave open whether it changed"
    return (
        f"{what} {verb} {_with_bounds(start, decimals)} to {_with_bounds(final, decimals)}{where}"
        f"{_paired(gain, decimals)}{doubt}."
    )


def _judge_sentence(summary: Summary) -> str:
    """Returns how well a model that judges does on held-out records; empty for one that writes."""
    last = section(summary.run, "metrics")
    found = [words.format(fixed(float(last[name]), 3)) for name, words in _JUDGED.items() if name in last]
    return f"On held-out records: {', '.join(found)}." if is_judge(summary.run) and found else ""


def _at_kl(kl: Interval | None) -> str:
    if kl is None:
        return ""
    return f" at {fixed(kl.mean, 1 if abs(kl.mean) >= 1 else 2)} nats from the start"


def _paired(gain: Interval | None, decimals: int) -> str:
    return f"; gain on the same prompts {_with_bounds(gain, decimals)}" if gain and gain.low is not None else ""


def _on_prompts(summary: Summary) -> str:
    evaluation = summary.final or summary.start
    num = evaluation.num_prompts if evaluation else None
    return "" if num is None else f" on {plural(num, 'held-out prompt')}"


def _with_bounds(interval: Interval | None, decimals: int) -> str:
    return f"{fixed(interval.mean if interval else None, decimals)} {bounds(interval, decimals)}".strip()


def _is_clear(start: Interval, final: Interval, gain: Interval | None) -> bool:
    """Says whether the reward changed: by the paired gain where there is one, else by disjoint intervals."""
    if gain is not None and gain.low is not None and gain.high is not None:
        return gain.low > 0 or gain.high < 0
    if start.low is None or start.high is None or final.low is None or final.high is None:
        return False
    return start.low > final.high or final.low > start.high


def _best_group_sentence(rows: list[GroupRow]) -> str:
    best = max(rows, key=lambda row: row.reward.mean if row.reward else float("-inf"))
    over = "one seed" if best.num_finished == 1 else f"mean over {best.num_finished} seeds, t interval"
    value = _with_bounds(best.reward, decimals_for([best.reward]))
    return f"Highest final reward: {best.label}, {value}{_at_kl(best.kl)} ({over})."


def _best_run_sentence(summaries: list[Summary], labels: list[str]) -> str:
    measured = [
        (final, summary, label)
        for summary, label in zip(summaries, labels, strict=True)
        if summary.status == "finished" and (final := summary.final_metric(REWARD))
    ]
    if not measured:
        return "No finished run has a reward on fresh samples."
    best, summary, label = max(measured, key=lambda entry: entry[0].mean)
    sentence = (
        f"Highest final reward: {label}, {_with_bounds(best, decimals_for([best]))}{_at_kl(summary.final_metric(KL))}"
    )
    if len(measured) == 1:
        return f"{sentence}; no other run finished with a reward."
    return f"{sentence}. It is the best of {len(measured)} on the same prompts, so expect a little less on new ones."
