"""Files that a shell command shows or writes, where it plainly does nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATH = r"(?P<path>[^\s|;&<>'\"()$`*?]{1,500})"
_SHOW = re.compile(
    rf"(?:cd [^\s;&|]{{1,500}} && )?cat[ \t]{{1,20}}(?:-n[ \t]{{1,9}})?(?P<quote>['\"]?){_PATH}(?P=quote)"
)
# cat > FILE <<'END' and cat <<END > FILE, at the beginning of a command.
_HERE_DOCUMENT = re.compile(
    r"(?:^|&&|;)[ \t]{0,9}cat[ \t]{0,9}"
    rf"(?:>[ \t]{{0,9}}['\"]?{_PATH}['\"]?[ \t]{{0,9}})?"
    r"<<-?[ \t]{0,9}(?P<mark>['\"]?)(?P<end>[A-Za-z_]\w{0,60})(?P=mark)"
    r"(?:[ \t]{0,9}>[ \t]{0,9}['\"]?(?P<after>[^\s|;&<>'\"()$`*?]{1,500})['\"]?)?[ \t]{0,9}\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class ShellFile:
    """The file of a shell command; ``text`` is what it writes, None if it shows the file."""

    path: str
    text: str | None


def parse_shell_command(command: str) -> ShellFile | None:
    """Return the file that a command shows (`cat FILE`) or writes (a here-document); None for others."""
    command = command.strip()
    if shown := _SHOW.fullmatch(command):
        return ShellFile(shown["path"], None)
    opening = _HERE_DOCUMENT.search(command)
    path = opening and (opening["path"] or opening["after"])
    if opening is None or path is None:
        return None
    end = f"\n{command}\n".find(f"\n{opening['end']}\n", opening.end())
    return None if end < 0 else ShellFile(path, command[opening.end() : end])
