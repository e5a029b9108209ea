"""Hypothesis strategies for requests that the gateway can answer: schemas alone rarely lead to one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SOURCES = (
    "def add(a, b):\n    return a + b\n",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    "x = f(1)\n",
)
# Few ids, so that requests meet in one session, also under another user.
sessions = st.sampled_from(("fuzz-1", "fuzz-2", "fuzz-3"))
users = st.sampled_from(("ada", "grace"))
words = st.text(st.characters(codec="utf-8"), max_size=40)

sources = st.sampled_from(SOURCES) | st.builds(
    lambda source, text: f"{source}# {json.dumps(text)}\n", st.sampled_from(SOURCES), words
)
_questions = sources | st.builds(
    lambda before, source, after: f"{before}\n```python\n{source}```\n{after}", words, sources, words
)
_earlier = st.builds(
    lambda role, text: {"role": role, "content": text},
    st.sampled_from(("system", "developer", "user", "assistant")),
    words,
)


def _to_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


_messages = st.builds(
    lambda earlier, content: [*earlier, {"role": "user", "content": content}],
    st.lists(_earlier, max_size=3),
    _questions | _questions.map(_to_parts),
)
chat_bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "model": st.sampled_from(("cet-d", "cet-d", "cet-d@v1")),
        "messages": _messages,
        "stream": st.sampled_from((True, False, None)),
    },
    optional={
        "stream_options": st.none() | st.fixed_dictionaries({"include_usage": st.booleans()}),
        "max_tokens": st.none() | st.integers(1, 2**40),
        "max_completion_tokens": st.integers(1, 30),
        "user": users,
        "metadata": st.dictionaries(words, st.text() | st.integers(), max_size=2)
        | st.fixed_dictionaries({"session_id": sessions}),
        "temperature": st.floats(0, 2),
        "seed": st.integers(),
        "n": st.just(1),
        "stop": st.none(),
        "response_format": st.just({"type": "text"}),
    },
)
requirements_bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"source_code": sources}, optional={"session_id": sessions, "metadata": st.dictionaries(words, words)}
)
conversation_bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "session_id": sessions,
        "messages": st.lists(_earlier | _messages.map(lambda messages: messages[-1]), min_size=1, max_size=4),
    }
)
feedback_bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"session_id": sessions, "rating": st.sampled_from((-1, 1))}, optional={"comment": words}
)
probe_bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"source_code": sources})
BODIES_BY_OPERATION = {
    "POST /v1/chat/completions": chat_bodies,
    "POST /v1/requirements": requirements_bodies,
    "POST /v1/conversations": conversation_bodies,
    "POST /v1/feedback": feedback_bodies,
    "POST /v1/probe": probe_bodies,
}
model_names = st.sampled_from(("cet-d", "cet-d@v1"))
