"""The label verb: each step of a solution gets the share of continuations from it that reach the right answer.

Math-Shepherd's estimation (Wang et al. 2023, arXiv 2312.08935, section 3): soft labels are the share, hard ones say
whether any did. The last step leaves nothing to continue: its label is whether the solution itself is right.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from alignment.data.encoding import Encoder, tokenizer_hash
from alignment.data.records import Record, RecordKind, UnfitError, from_row
from alignment.data.sources import Source
from alignment.data.splits import RecordSet, cached_records
from alignment.data.store import content_hash
from alignment.data.views import check_view, view
from alignment.evaluation.step_values import Solution, finished, solution_of, step_prompts, verdicts, whole
from alignment.pipeline.folder import run_folder
from alignment.pipeline.inference import Loaded, load, precision
from alignment.pipeline.manifest import Manifest
from alignment.rewards.base import Reward
from alignment.rollout.engine import EncodedPrompt, RolloutOptions, check_prompts, check_sampling
from alignment.rollout.hf import context_tokens
from alignment.types import Sampling
from alignment.utils.errors import ConfigError, UserError
from alignment.utils.files import append_json_line, write_json_lines_atomic, write_text_atomic

log = logging.getLogger(__name__)

STEPS_FILE = "steps.jsonl"
LABEL_VERSION = 1
"""Part of the journal's name: raise it when the same roll-outs would be counted differently."""
_CHUNK_BATCHES = 4  # batches between two entries of the journal


@dataclass(frozen=True)
class Counts:
    """What became of a solution's continuations.

    Attributes:
        right: For each step how many reached the right answer; for the last, 1 or 0.
        tokens: Tokens that were generated.
    """

    right: tuple[int, ...]
    tokens: int


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Labels the steps of solutions and writes them to the run's folder.

    What has been counted is kept in the cache: a run that was killed goes on when it is started again.

    Args:
        cfg: The composed and validated configuration.
        run_dir: Where the run lives.
        overrides: What the user typed, for the manifest.
    """
    _check(cfg)
    with run_folder("label", cfg, run_dir, overrides) as (cfg, manifest):
        reward: Reward = instantiate(cfg.reward, _convert_="all")
        options: RolloutOptions = instantiate(cfg.rollout, _convert_="all")
        check_sampling(options.sampling)
        solutions = _solutions(cfg, manifest)
        # Before any sampling: a verifier that cannot judge these records says so at once.
        is_right = verdicts(reward, [whole(solution) for solution in solutions])
        loaded = load(cfg.model, cfg.hardware)
        journal = Path(cfg.paths.cache).expanduser() / "labels" / f"{_journal_name(cfg, loaded)}.jsonl"
        with precision(cfg.hardware):
            counts = count(loaded, solutions, is_right, reward=reward, options=options, journal=journal)
        labels = [_labels(entry, options.sampling.num_samples, kind=cfg.labels) for entry in counts]
        _write(solutions, labels, run_dir / STEPS_FILE)
        manifest.update(
            model=loaded.describe(),
            metrics=_metrics(labels, is_right),
            budget={
                "prompts": sum(len(solution.prefixes) for solution in solutions),
                "tokens_generated": sum(entry.tokens for entry in counts),
            },
            artefacts={"steps": STEPS_FILE},
        )
        _show(labels, is_right, run_dir)


def count(
    loaded: Loaded,
    solutions: Sequence[Solution],
    is_right: Sequence[bool],
    *,
    reward: Reward,
    options: RolloutOptions,
    journal: Path,
) -> list[Counts]:
    """Continues from every step, and counts what reaches the right answer.

    Args:
        loaded: Goes on from the steps.
        solutions: Taken apart.
        is_right: Whether each of them is right as it stands.
        reward: Gives 1 for a right answer and 0 for a wrong one.
        options: How to go on; ``sampling.num_samples`` is the number of continuations of a step.
        journal: Counts of solutions that are done, a line each; it grows as the work goes on.

    Raises:
        UserError: A prompt with its steps does not fit the model; the reward is no verifier.
    """
    encoder, sampling = Encoder(loaded.tokenizer), options.sampling
    prompts = [step_prompts(solution, encoder) for solution in solutions]
    limit = context_tokens(loaded.model.hf_model)
    check_prompts(list(chain.from_iterable(prompts)), context_tokens=limit, max_new_tokens=sampling.max_new_tokens)
    done = _read_journal(journal)
    names = [_name(solution) for solution in solutions]
    waiting = [place for place, name in enumerate(names) if name not in done]
    if len(waiting) < len(solutions):
        log.info("%d of %d solutions were labelled before", len(solutions) - len(waiting), len(solutions))
    engine = options.engine(model=loaded.model, tokenizer=loaded.tokenizer)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Labelling", total=len(solutions), completed=len(solutions) - len(waiting))
        for places in _chunks(waiting, prompts, sampling):
            drawn = iter(engine.generate([prompt for place in places for prompt in prompts[place]], sampling))
            answers = [
                list(finished(solutions[place], list(islice(drawn, len(prompts[place]) * sampling.num_samples))))
                for place in places
            ]
            reached = iter(verdicts(reward, list(chain.from_iterable(answers))))
            for place, own in zip(places, answers, strict=True):
                right = [sum(islice(reached, sampling.num_samples)) for _ in prompts[place]]
                entry = Counts((*right, int(is_right[place])), sum(len(rollout.completion_ids) for rollout in own))
                append_json_line(journal, {"solution": names[place], "right": entry.right, "tokens": entry.tokens})
                done[names[place]] = entry
            bar.advance(task, len(places))
    return [done[name] for name in names]


def _solutions(cfg: DictConfig, manifest: Manifest) -> list[Solution]:
    source: Source = instantiate(cfg.data.train, _convert_="all")
    records = cached_records(source, Path(cfg.paths.cache).expanduser())
    want = RecordKind.STEPWISE if records.kind is RecordKind.STEPWISE else RecordKind.DEMONSTRATION
    check_view(records.kind, want)
    solutions = [solution_of(record, cfg.separator) for record in _records(records, want, cfg.data.limit)]
    if not solutions:
        raise ConfigError("data", got="no record that is a solution", expected="solutions in steps, or demonstrations")
    if want is RecordKind.DEMONSTRATION and not any(cfg.separator in solution.text for solution in solutions):
        raise ConfigError(
            "separator",
            got=cfg.separator,
            expected=f"what stands between the steps of the data; it is in none of {len(solutions)} completions",
        )
    manifest.update(data={"fingerprint": records.fingerprint, "statistics": {"source": records.report}})
    return solutions


def _records(records: RecordSet, want: RecordKind, limit: int | None) -> Iterator[Record]:
    rows = records.rows if limit is None else records.rows.select(range(min(limit, len(records.rows))))
    left_out: Counter[str] = Counter()
    row: dict[str, Any]
    for row in rows:  # type: ignore[assignment]
        try:
            yield from view(from_row(records.kind, row), want)
        except UnfitError as error:
            left_out[error.reason] += 1
    for reason, number in left_out.items():
        log.warning("%d records left out: %s", number, reason)


def _journal_name(cfg: DictConfig, loaded: Loaded) -> str:
    """Names everything but the solution that its counts depend on."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    sampling = {name: value for name, value in plain["rollout"]["sampling"].items() if name != "batch_size"}
    return content_hash(
        version=LABEL_VERSION,
        weights=loaded.source.weights_hash(),
        precision=[loaded.source.dtype, loaded.source.attention, loaded.source.quantization, cfg.hardware.precision],
        tokenizer=tokenizer_hash(loaded.tokenizer),
        template=loaded.tokenizer.chat_template,
        sampling=sampling,
        reward=plain["reward"],
    )


def _name(solution: Solution) -> str:
    """Names a solution by content, its id included: samples depend on it."""
    return content_hash(
        id=solution.id, prompt=solution.prompt, text=solution.text, ends=solution.ends, answer=solution.answer
    )


def _read_journal(path: Path) -> dict[str, Counts]:
    """Reads what earlier runs counted; a line that a kill has torn is closed and left out."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        complete = text[: text.rfind("\n") + 1]
        write_text_atomic(path, complete)
        text = complete
    entries = [json.loads(line) for line in text.splitlines()]
    return {entry["solution"]: Counts(tuple(entry["right"]), entry["tokens"]) for entry in entries}


def _chunks(
    waiting: Sequence[int], prompts: Sequence[Sequence[EncodedPrompt]], sampling: Sampling
) -> Iterator[list[int]]:
    """Puts together solutions that fill a few batches with continuations."""
    chunk: list[int] = []
    rows = 0
    for place in waiting:
        chunk.append(place)
        rows += len(prompts[place]) * sampling.num_samples
        if rows >= _CHUNK_BATCHES * sampling.batch_size:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _labels(counts: Counts, num_samples: int, *, kind: str) -> list[float]:
    *steps, last = counts.right
    if kind == "hard":
        return [float(right > 0) for right in counts.right]
    return [*(right / num_samples for right in steps), float(last)]


def _write(solutions: Sequence[Solution], labels: Sequence[Sequence[float]], path: Path) -> None:
    """Writes solutions in the format that is read as judged steps, all of them or nothing."""
    rows = [
        {"id": item.id, "prompt": item.prompt, "completions": item.steps, "labels": values, "answer": item.answer}
        for item, values in zip(solutions, labels, strict=True)
    ]
    write_json_lines_atomic(path, rows)


def _metrics(labels: Sequence[Sequence[float]], is_right: Sequence[bool]) -> dict[str, float]:
    flat = [value for values in labels for value in values]
    return {
        "label/solutions": len(labels),
        "label/solved_share": fmean(is_right),
        "label/steps": len(flat),
        "label/mean": fmean(flat),
    }


def _show(labels: Sequence[Sequence[float]], is_right: Sequence[bool], run_dir: Path) -> None:
    """Prints the mean label step by step, of solutions that are right and of those that are wrong."""
    table = Table(title="Mean label of a step")
    for column in ("step", "steps", "all", "right solutions", "wrong solutions"):
        table.add_column(column, justify="right")
    for place in range(max(len(values) for values in labels)):
        reached = [
            (values[place], right) for values, right in zip(labels, is_right, strict=True) if place < len(values)
        ]
        groups: Mapping[str, list[float]] = {
            "all": [value for value, _ in reached],
            "right": [value for value, right in reached if right],
            "wrong": [value for value, right in reached if not right],
        }
        cells = [f"{fmean(values):.3f}" if values else "" for values in groups.values()]
        table.add_row(str(place + 1), str(len(reached)), *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(labels)} solutions, {sum(is_right)} of them right: {run_dir / STEPS_FILE}", soft_wrap=True)


def _check(cfg: DictConfig) -> None:
    if cfg.reward is None:
        raise UserError(
            "align label needs a verifier that gives 1 for a right answer and 0 for a wrong one: reward=answer"
        )
    if not cfg.separator:
        raise ConfigError("separator", got=cfg.separator, expected="what stands between two steps")
