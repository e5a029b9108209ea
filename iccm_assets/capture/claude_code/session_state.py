"""The state of an imported session: its own turns, and what decides them when it is imported again.

A turn belongs to one session, whatever files hold it: those of a forked or resumed session that were copied
from another one belong to that one. Pure functions. (C3)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from iccm_assets.capture.claude_code.session_builder import SessionTurns, Turn
from iccm_assets.capture.claude_code.transcript_lines import parse_time
from iccm_assets.capture.extraction import extract_exchange

_START = datetime.min.replace(tzinfo=UTC)
_CONTEXT_KEYS = ("source_code", "requirements")


@dataclass(frozen=True)
class SessionState:
    """A session. ``root``: the keys of its first turn and first answer, or of the session that it continues.

    ``leaf``: the time of the last message of its live branch; of two files, the one with the later leaf says
    which lines are ``dead``. ``foreign``: the keys of turns in its files that belong to other
    sessions; the last of them is its ``parent``, which is not stored. ``context``: the source and the
    requirements of its last exchange, where they need such turns.
    """

    turns: tuple[Turn, ...]
    root: str = ""
    leaf: datetime | None = None
    dead: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    parent: str | None = None
    context: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The content of the conversation."""
        return to_messages(self.turns)

    def to_metadata(self) -> dict[str, Any]:
        """The metadata of the conversation; ``parse_state`` is the inverse."""
        leaf = self.leaf and self.leaf.isoformat()
        turns = [[turn.key, turn.timestamp and turn.timestamp.isoformat()] for turn in self.turns]
        keys = {"dead": sorted(self.dead), "foreign": sorted(self.foreign)}
        return {
            **dict(self.context),
            "turns": turns,
            "transcript": {"root": self.root, "leaf": leaf, **keys},
        }


def parse_state(content: object, metadata: Mapping[str, Any]) -> SessionState | None:
    """Parse a stored conversation; None where the newest import has to replace it."""
    keys, transcript = metadata.get("turns"), metadata.get("transcript")
    if not isinstance(content, list) or not isinstance(keys, list) or not isinstance(transcript, Mapping):
        return None
    try:
        turns = tuple(
            Turn(key, parse_time(time), message["role"], message["content"])
            for (key, time), message in zip(keys, content, strict=True)
        )
        return SessionState(
            turns,
            transcript["root"],
            parse_time(transcript["leaf"]),
            frozenset(transcript["dead"]),
            frozenset(transcript["foreign"]),
            context=tuple(
                (key, metadata[key]) for key in _CONTEXT_KEYS if isinstance(metadata.get(key), str)
            ),
        )
    except (TypeError, ValueError, KeyError):
        return None


def to_messages(turns: Collection[Turn]) -> list[dict[str, Any]]:
    """Return turns as the content of a conversation."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def find_root(new: SessionTurns, stored: SessionState | None) -> str:
    """Return what all forks of a session have in common; "" while there is no answer.

    A session that was forked without its first turns keeps the root it had.
    """
    if stored is not None and stored.foreign and not new.inherited:
        return stored.root
    turns = merge_turns(() if stored is None or new.inherited else stored.turns, (*new.inherited, *new.turns))
    answer = next((turn for turn in turns if turn.role == "assistant"), None)
    return "" if answer is None else f"{turns[0].key} {answer.key}"


def merge_session(
    stored: SessionState | None,
    new: SessionTurns,
    owners: Mapping[str, str],
    *,
    reclaimed: Collection[str] = (),
    with_context: bool = True,
) -> SessionState:
    """Merge what a file holds of a session into its state; the result does not depend on the order of files.

    ``owners``: the sessions that own turns, by key, of those with the same root. ``reclaimed``: the keys of
    turns that it gets back from its copies. ``with_context``: whether turns of others may be its source.
    """
    state = stored or SessionState(())
    leaf = _latest([turn.timestamp for turn in (*new.inherited, *new.turns)])
    dead = _merge_dead(state, new, leaf)
    turns = _without(merge_turns(state.turns, new.turns), dead)
    known = state.foreign.difference(reclaimed)
    foreign = known.union(owners) & {turn.key for turn in turns}
    own = _without(turns, foreign)
    state = SessionState(
        tuple(own),
        find_root(new, stored),
        _latest([state.leaf, leaf]),
        dead,
        foreign.union(known, (turn.key for turn in new.inherited)),
        new.parent or next((owners[turn.key] for turn in reversed(turns) if turn.key in owners), None),
        state.context,
    )
    if new.inherited or foreign:
        # Turns of a session that is gone are nobody's source.
        present = _without(turns, foreign.difference(owners))
        chain = merge_turns((), (*new.inherited, *present))
        return replace(state, context=_find_context(own, chain) if with_context else ())
    return _renew_context(state)


def _without(turns: Collection[Turn], keys: Collection[str]) -> list[Turn]:
    return [turn for turn in turns if turn.key not in keys]


def find_givers(stored: SessionState | None, new: SessionTurns, owners: Mapping[str, str]) -> frozenset[str]:
    """Return the sessions that hold all of this one and more: they are its copies, imported before it."""
    turns = merge_turns(stored.turns if stored is not None else (), new.turns)
    if not turns or turns[-1].key not in owners:
        return frozenset()
    keys = {turn.key for turn in turns}
    sharing = {owners[key] for key in keys if key in owners}
    return frozenset(owner for key, owner in owners.items() if key not in keys and owner in sharing)


def give_turns(state: SessionState, session_id: str, taker: SessionState, new: SessionTurns) -> SessionState:
    """Return a session without the turns of another one, which it continues; ``new``: what its file holds."""
    owners = {turn.key: session_id for turn in taker.turns}
    history = SessionTurns(inherited=[*new.inherited, *new.turns])
    return replace(merge_session(state, history, owners), root=state.root)


def merge_turns(stored: Collection[Turn], new: Collection[Turn]) -> list[Turn]:
    """Merge turns, each once, ordered by time; those of the same time keep the order of the files.

    Of two versions of a turn the one with more blocks is retained: an answer is written as it arrives.
    """
    turns: dict[str, Turn | None] = dict.fromkeys(_merge_order(stored, new))
    for turn in (*stored, *new):
        known = turns[turn.key] or turn
        longer = max(known, turn, key=lambda turn: len(turn.content) if isinstance(turn.content, list) else 1)
        times = [time for time in (known.timestamp, turn.timestamp) if time is not None]
        turns[turn.key] = replace(longer, timestamp=min(times, default=None))
    merged = [turn for turn in turns.values() if turn is not None]
    return sorted(merged, key=lambda turn: turn.timestamp or _START)


def _merge_order(stored: Collection[Turn], new: Collection[Turn]) -> Iterator[str]:
    """Yield the keys of both in order; what only one of them holds comes before the next common turn."""
    following = deque(new)
    common = {turn.key for turn in new}
    for turn in stored:
        while turn.key in common and following:
            key = following.popleft().key
            common.discard(key)
            yield key
            if key == turn.key:
                break
        else:
            yield turn.key
    yield from (turn.key for turn in following)


def _merge_dead(state: SessionState, new: SessionTurns, leaf: datetime | None) -> frozenset[str]:
    """Return the dead lines: those of the file with the later leaf, and those that the other alone knows."""
    stored_live = {turn.key for turn in state.turns}
    new_live = {turn.key for turn in new.turns}
    stored_dead, new_dead = state.dead, new.dead
    if (state.leaf or _START) <= (leaf or _START):
        stored_dead = stored_dead - new_live
    if (state.leaf or _START) >= (leaf or _START):
        new_dead = new_dead - stored_live
    return stored_dead | new_dead


def _find_context(own: list[Turn], chain: list[Turn]) -> tuple[tuple[str, str], ...]:
    """Return the exchange that ends in the session's own turns, if it needs those of others."""
    alone = extract_exchange(to_messages(own), {})
    if alone.requirements is None:
        return ()
    keys = {turn.key for turn in own}
    end = max(place for place, turn in enumerate(chain) if turn.key in keys)
    whole = extract_exchange(to_messages(chain[: end + 1]), {})
    if whole == alone or whole.source is None or whole.requirements is None:
        return ()
    return (("source_code", whole.source), ("requirements", whole.requirements))


def _renew_context(state: SessionState) -> SessionState:
    """Drop a stored context if the session's own turns name a source meanwhile."""
    if state.context and extract_exchange(state.messages, {}).source is not None:
        return replace(state, context=())
    return state


def _latest(times: list[datetime | None]) -> datetime | None:
    return max((time for time in times if time is not None), default=None)
