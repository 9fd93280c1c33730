"""The command ``align``: a verb and what follows it. Thin; torch is imported inside a verb only."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from alignment.cli.help import VERBS, main_help, verb_help
from alignment.utils.errors import UserError, nearest

_HELP = ("-h", "--help")
_USAGE, _TERMINATED = 2, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``align``.

    Args:
        argv: The arguments behind the program's name; the process's own by default.

    Returns:
        0 done; 1 a failure; 2 a usage or configuration error. After SIGTERM the process exits with 143.
    """
    # Waiting threads sleep. By default they spin, and where another process wants a core too a run takes many times
    # longer; on an idle machine sleeping costs a small model up to a quarter. Read by OpenMP when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(main_help(), file=sys.stderr)
        return _USAGE
    verb, rest = arguments[0], arguments[1:]
    if verb in _HELP:
        return _show(main_help())
    if verb == "--version":
        return _print_version()
    if verb == "--completion" or verb in ("-sc", "--shell-completion"):
        from alignment.cli.completion import complete

        return complete(verb, rest)
    if verb not in VERBS:
        hint = nearest(verb, VERBS) or f"the verbs are {', '.join(VERBS)}"
        print(f"error: align has no verb '{verb}': {hint}", file=sys.stderr)
        return _USAGE
    if any(argument in _HELP for argument in rest):
        return _show(verb_help(verb))
    return _run(verb, rest)


def _show(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader, a pager or `head`, has seen enough. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(verb: str, rest: list[str]) -> int:
    from alignment.cli.job import report_user_error

    # Until a training run takes signals over, to save a checkpoint first.
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        if verb == "report":
            from alignment.cli.report import run_report

            return run_report(rest)
        if verb == "cache":
            from alignment.cli.cache import run_cache

            return run_cache(rest)
        if rest[:1] == ["--job"]:
            return _join(rest[1:])
        from alignment.cli.app import run_app

        return run_app(verb, _named_pipeline(rest) if verb == "pipeline" else rest)
    except UserError as error:
        return report_user_error(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(rest: list[str]) -> int:
    from alignment.cli.job import join

    if len(rest) != 1:
        raise UserError("--job takes one run's folder")
    return join(Path(rest[0]))


def _named_pipeline(rest: list[str]) -> list[str]:
    """Turns the first word without ``=`` into ``pipeline=WORD``."""
    if rest and "=" not in rest[0] and not rest[0].startswith(("-", "+", "~")):
        return [f"pipeline={rest[0]}", *rest[1:]]
    return rest


def _print_version() -> int:
    import alignment

    print(f"align {alignment.__version__}")
    return 0


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
