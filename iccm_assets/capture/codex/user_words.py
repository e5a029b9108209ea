"""The developer's own words in messages of the role `user`: programs write such messages, too."""

from __future__ import annotations

import re

# What the program puts into a message of its own, or above the developer's words.
_ELEMENT = re.compile(
    r"\s{0,100}<(environment_context|user_instructions|turn_aborted|user_action|permissions instructions"
    r"|skills?(?:_instructions)?|subagent_notification|user_shell_command|collaboration_mode|model_switch"
    r"|apps_instructions|plugins_instructions|personality_spec|instructions|hook_prompt|codex_internal_context"
    r"|goal_context)(?:\s[^<>\n]{0,200})?>",
    re.IGNORECASE,
)
_DOCUMENT = re.compile(r"\s{0,100}# AGENTS\.md instructions\b[^\n]{0,1000}", re.IGNORECASE)
_EDITOR = re.compile(r"\s{0,100}# (?:Context from my IDE setup|Files mentioned by the user)\b", re.IGNORECASE)
_REQUEST = re.compile(r"^## My request(?: for [^\n:]{1,40})?:?[ \t]*\n", re.IGNORECASE | re.MULTILINE)


def remove_inserted_text(text: str) -> str:
    """Return a text of a `user` message without what the program inserted; linear in its length."""
    position = 0
    if heading := _DOCUMENT.match(text):
        position = heading.end()
        if not _ELEMENT.match(text, position):
            return ""  # the document is the rest of the message
    while element := _ELEMENT.match(text, position):
        name = element[1].split(" ")[0].lower()
        end = re.compile(rf"</{re.escape(name)}[^<>\n]{{0,40}}>", re.IGNORECASE).search(text, element.end())
        position = len(text) if end is None else end.end()
    words = text[position:]
    if _EDITOR.match(words) and (request := _REQUEST.search(words)):
        words = words[request.end() :]
    return words if words.strip() else ""
