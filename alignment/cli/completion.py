"""Shell completion: verbs here, everything behind a verb by Hydra's own completion."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from alignment.cli.help import VERBS
from alignment.utils.errors import nearest

SHELLS = ("bash", "zsh", "fish")

#: What may stand behind the verbs that Hydra does not compose; files are the shell's own matter.
_PLAIN = {
    "report": (),
    "cache": ("list", "prune", "--kind", "--older-than", "--unfinished", "--all", "--yes", "--cache"),
}

# Colons and equal signs are parts of a word here, as in Hydra's own script.
_BASH = r"""
_align_complete() {
    local IFS=$' \t\n'
    local word="${COMP_WORDS[COMP_CWORD]}"
    local choices
    choices=$(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" align -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -o default -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
COMP_WORDBREAKS=${COMP_WORDBREAKS//:}
complete -o nospace -o default -F _align_complete align
"""
_ZSH = r"""
_align_complete() {
    local -a choices
    choices=(${=$(COMP_LINE="$LBUFFER" align -sc query=bash 2>/dev/null)})
    compadd -S '' -a choices
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _align_complete align
"""
_FISH = r"""
function _align_complete
    COMP_LINE=(commandline -cp) align -sc query=fish 2>/dev/null
end
complete -c align -f -a '(_align_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def complete(flag: str, arguments: Sequence[str]) -> int:
    """Answers ``align --completion SHELL`` and what its script asks while a user types.

    Args:
        flag: ``--completion``, or Hydra's ``-sc``.
        arguments: ``SHELL`` behind the former; ``install=SHELL`` or ``query=SHELL`` behind the latter.

    Returns:
        The exit code.
    """
    command, _, shell = arguments[0].rpartition("=") if arguments else ("", "", "")
    if flag == "--completion":
        command = command or "install"
    if shell not in SHELLS or command not in ("install", "uninstall", "query"):
        hint = nearest(shell, SHELLS)
        print(
            f"error: {flag}: got '{' '.join(arguments)}', expected one of {', '.join(SHELLS)}. {hint}", file=sys.stderr
        )
        return 2
    if command == "query":
        return _query(shell)
    print(_SCRIPTS[shell] if command == "install" else _uninstall(shell))
    return 0


def _uninstall(shell: str) -> str:
    return {"bash": "complete -r align", "zsh": "compdef -d align", "fish": "complete -e -c align"}[shell]


def _query(shell: str) -> int:
    """Prints the candidates for the line in ``COMP_LINE``."""
    line = os.environ.get("COMP_LINE", "").lstrip()
    program, _, typed = line.partition(" ")
    verb = re.match(r"\s*(\S+)\s+(.*)", typed, re.DOTALL)
    if verb is None or verb[1] in _PLAIN:
        known, word = (VERBS, typed.strip()) if verb is None else (_PLAIN[verb[1]], verb[2].rpartition(" ")[2])
        print(("\n" if shell == "fish" else " ").join(name for name in known if name.startswith(word)))
        return 0
    if verb[1] in VERBS:
        from alignment.cli.app import run_app

        # Hydra takes the first word for the program and completes the rest.
        os.environ["COMP_LINE"] = f"{program} {verb[2]}"
        return run_app(verb[1], ["-sc", f"query={shell}"])
    return 0
