"""The process behind reward=math: it reads questions line by line, and is killed by an alarm over one that takes long.

It is run as a script and imports nothing of this project, so that it starts fast.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

MEMORY_BYTES = 4 * 2**30
"""The most address space: a power tower is no reason to fill the machine."""

NO_TIMEOUT = 0
"""Of math-verify's own: the alarm is this process's, and kills it."""

_BOXED = "\\boxed"
_DOLLAR = re.compile(r"(?<!\\)\$")
_LATEX = LatexExtractionConfig(boxed_match_priority=0)


@lru_cache(maxsize=64)
def read_answer(answer: str) -> list[Any]:
    """Reads a record's answer; one that marks nothing as mathematics is LaTeX as a whole."""
    is_marked = _BOXED in answer or _DOLLAR.search(answer) is not None
    return read(answer if is_marked else f"${answer.strip()}$", boxed_only=False)


def read(text: str, *, boxed_only: bool) -> list[Any]:
    """Reads a text's last box; where it has none, its last expression."""
    if _BOXED in text:
        last = text[text.rindex(_BOXED) :]
        return parse(last, [_LATEX], extraction_mode="first_match", parsing_timeout=NO_TIMEOUT)
    return [] if boxed_only else parse(text, [_LATEX, ExprExtractionConfig()], parsing_timeout=NO_TIMEOUT)


def judge(answer: str, completion: str, *, boxed_only: bool) -> dict[str, bool]:
    """Says whether the answer could be read, whether the completion has one, and whether it is the same."""
    wanted, given = read_answer(answer), read(completion, boxed_only=boxed_only)
    right = bool(wanted and given) and verify(wanted, given, timeout_seconds=NO_TIMEOUT)
    return {"readable": bool(wanted), "found": bool(given), "right": right}


def main() -> None:
    """Answers questions until there are no more."""
    logging.disable(logging.CRITICAL)  # math-verify warns that it has no timeout of its own
    options = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Nothing handles the alarm: it ends the process, wherever it is.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, options["timeout_seconds"])
        reply = judge(**json.loads(line), boxed_only=options["boxed_only"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
