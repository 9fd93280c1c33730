"""Data sets of the chains world: solutions to imitate, solutions that are judged, and prompts with answers."""

from __future__ import annotations

from random import Random

from alignment.data.records import Demonstration, Preference, Prompt, RecordKind, Stepwise
from alignment.data.worlds import chains
from alignment.data.worlds.chains import Chain, Solver, Split
from alignment.data.worlds.sources import WorldSource, chat
from alignment.utils.errors import ConfigError

MOST_DRAWS = 10_000
"""Pairs of solutions that are drawn before the solver is taken to be always right, or always wrong."""


class ChainSource(WorldSource):
    """Records of the chains world.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        min_operations: The fewest operations of a prompt.
        max_operations: The most.
    """

    world = "chains"
    version = chains.CHAINS_VERSION

    def __init__(self, *, num_records: int, seed: int, split: Split, min_operations: int, max_operations: int) -> None:
        super().__init__(num_records=num_records, seed=seed, split=split)
        if min_operations < 1:
            raise ConfigError("min_operations", got=min_operations, expected="at least 1")
        if max_operations < min_operations:
            raise ConfigError(
                "max_operations", got=max_operations, expected=f"at least min_operations ({min_operations})"
            )
        self.num_operations = (min_operations, max_operations)

    def _identity(self) -> dict[str, object]:
        return {**super()._identity(), "num_operations": self.num_operations}

    def _chain(self, random: Random) -> Chain:
        return chains.sample_chain(self.split, num_operations=self.num_operations, random=random)


class WorldChainPrompts(ChainSource):
    """Prompts with the right answer, under ``answer``; for sampling and for evaluation.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        min_operations: The fewest operations of a prompt.
        max_operations: The most.
    """

    kind = RecordKind.PROMPT

    def _record(self, index: int) -> Prompt:
        chain = self._chain(self._random(index))
        return Prompt(id=self._id(index), prompt=chat(chains.prompt_text(chain)), answer={"answer": str(chain.answer)})


class SolvedChainSource(ChainSource):
    """Records with solutions of the world's own solver, who errs.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        min_operations: The fewest operations of a prompt.
        max_operations: The most.
        forget: Probability that the solver forgets a carry or a borrow.
        slip: Probability that the number of any other line is off by one, two or ten.
    """

    def __init__(
        self,
        *,
        num_records: int,
        seed: int,
        split: Split,
        min_operations: int,
        max_operations: int,
        forget: float,
        slip: float,
    ) -> None:
        super().__init__(
            num_records=num_records,
            seed=seed,
            split=split,
            min_operations=min_operations,
            max_operations=max_operations,
        )
        for name, value in (("forget", forget), ("slip", slip)):
            if not 0 <= value <= 1:
                raise ConfigError(name, got=value, expected="a probability, from 0 to 1")
        self.solver = Solver(forget=forget, slip=slip)

    def _identity(self) -> dict[str, object]:
        return {**super()._identity(), "forget": self.solver.forget, "slip": self.solver.slip}

    def _solution(self, chain: Chain, random: Random) -> tuple[str, ...]:
        return chains.sample_solution(chain, solver=self.solver, random=random)


class WorldChainDemonstrations(SolvedChainSource):
    """A prompt and one solution, right or wrong: what a model imitates before it is aligned."""

    kind = RecordKind.DEMONSTRATION

    def _record(self, index: int) -> Demonstration:
        random = self._random(index)
        chain = self._chain(random)
        lines = self._solution(chain, random)
        return Demonstration(
            id=self._id(index),
            prompt=chat(chains.prompt_text(chain)),
            completion="\n".join(lines),
            answer={"answer": str(chain.answer)},
        )


class WorldChainSolutions(SolvedChainSource):
    """A prompt and one solution, each step with its true label: 1 where it is right, see :func:`chains.judge`."""

    kind = RecordKind.STEPWISE

    def _record(self, index: int) -> Stepwise:
        random = self._random(index)
        chain = self._chain(random)
        lines = self._solution(chain, random)
        return Stepwise(
            id=self._id(index),
            prompt=chat(chains.prompt_text(chain)),
            steps=lines,
            labels=tuple(float(verdict) for verdict in chains.judge(chain, lines)),
            answer={"answer": str(chain.answer)},
        )


class WorldChainOutcomes(SolvedChainSource):
    """A solution with the right answer and one with a wrong answer, for a reward model of outcomes.

    Two independent solutions of a prompt are drawn until exactly one has the right answer. Nothing tells where
    the other went wrong; and a right answer may have been come by through mistakes that cancel.
    """

    kind = RecordKind.PREFERENCE

    def _record(self, index: int) -> Preference:
        random = self._random(index)
        for _ in range(MOST_DRAWS):
            chain = self._chain(random)
            solutions = [self._solution(chain, random) for _ in range(2)]
            wrong, right = sorted(solutions, key=lambda lines: chains.is_solved(chain, lines))
            if chains.is_solved(chain, right) and not chains.is_solved(chain, wrong):
                return Preference(
                    id=self._id(index),
                    prompt=chat(chains.prompt_text(chain)),
                    chosen="\n".join(right),
                    rejected="\n".join(wrong),
                )
        raise ConfigError(
            "forget",
            got=self.solver.forget,
            expected="between 0 and 1, or slip between them, for solutions of a prompt to differ",
        )
