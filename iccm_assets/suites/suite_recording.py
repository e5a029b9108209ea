"""Record a test suite from the code itself, for code that came without tests. (D2, D3, D4)

    recording = record_suite(source_code, settings)

The source runs in the sandbox on inputs from the texts about it, drawn by type, or changed from others.
Its answers become the expectations of the cases that reach new branches or refuse a mutant. Only behaviour
is recorded that requirements could state: the same answer in three processes with different hash seeds and
in another order, and exceptions that the source raises itself.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iccm_assets.errors import TestSuiteError
from iccm_assets.settings import Settings
from iccm_assets.suites.answer_agreement import is_specified, list_right_steps
from iccm_assets.suites.missing_dependencies import explain, find_missing_package
from iccm_assets.suites.mutants import Mutant, generate_mutants, select_mutants, split_mutants
from iccm_assets.suites.outside_effects import choose_targets, find_left_out_lines
from iccm_assets.suites.recorded_cases import (
    MAX_CASE_CHARACTERS,
    MIN_CASES,
    CaseWriter,
    RecordedCase,
    agree_on_outcome,
    list_inputs,
    select_cases,
)
from iccm_assets.suites.recorded_inputs import ROUNDS, InputSearch, Plan, Proposal
from iccm_assets.suites.recorded_source import RecordedSource, find_missing_files, leave_out_tests
from iccm_assets.suites.source_edits import MAX_SOURCE_LENGTH, Edit, SourceText, list_nodes
from iccm_assets.suites.source_variants import (
    FIRST_COMPARISON,
    find_branch,
    find_special_lines,
    insert_all_probes,
    insert_probes,
    list_branch_spans,
)
from iccm_assets.suites.suite_runner import bind_environment
from iccm_assets.suites.suite_strength import (
    GENERATOR_VERSION,
    SuiteMeasurement,
    find_raised,
    measure_recorded_suite,
    measure_suite,
)
from iccm_assets.suites.suite_values import InvalidValueError
from iccm_assets.suites.test_suites import Suite, parse_suite
from iccm_assets.suites.variant_runs import PLAN_SECONDS, MeasurementFailedError, SourceAnswer, VariantRunner

HASH_SEEDS = (1, 2)
MAX_CANDIDATES = 240
MAX_SELECTION_MUTANTS = 60
MAX_LOST, MAX_SLOW_PLANS, SLOW_PLAN_SECONDS = 0.5, 30, 0.5  # where most inputs take longer
MAX_REPAIRED = 120  # sequences of calls of one round
MAX_ROUNDS = 12  # of inputs that reach something new
SPREAD = 0x9E3779B1  # mixes numbers that follow each other
FEW_LOST = 4  # inputs without an answer
FEW_NEW = 60  # inputs of a round that none before had
ENOUGH_INPUTS = 150  # with an answer, where they reach all branches
FURTHER_ROUNDS = 3  # of inputs, while a mutant is not refused

_CONTAINS_ITSELF = '["deep"]'
_TYPE_ERROR = '["r",[["TypeError",'
_NOTHING = Suite("cases", (), "")


@dataclass(frozen=True)
class SuiteRecording:
    """A recorded suite with its measurement; ``document`` is None where nothing could be recorded.

    ``left_out`` says by name why a function or class has no case. ``environment`` is the digest of the one
    that the source ran in, "" for the standard library alone.
    """

    measurement: SuiteMeasurement
    document: dict[str, Any] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    environment: str = ""


def record_suite(source_code: str, settings: Settings, texts: Iterable[str] = ()) -> SuiteRecording:
    """Record and measure a suite; ``texts`` may hold examples of calls, such as the turns of a conversation.

    Raises ``SandboxUnavailableError`` where there is no sandbox, which says nothing about the source.
    """
    recorded = leave_out_tests(source_code)
    nothing, environment = bind_environment(recorded.text, _NOTHING, settings)
    recording = _record(recorded, nothing, settings, [*texts, *recorded.examples])
    return replace(recording, environment=environment.digest if environment else "")


def _record(
    recorded: RecordedSource, nothing: Suite, settings: Settings, texts: Iterable[str]
) -> SuiteRecording:
    source_code = recorded.text
    source = SourceText.parse(source_code) if len(source_code) <= MAX_SOURCE_LENGTH else None
    if source is None:
        return _nothing("the source is not Python, too long, or nested too deep to analyse")
    try:
        recorder = _Recorder(source, texts)
        recorder.left_out |= recorded.left_out
        if not recorder.targets:
            return _nothing(recorder.explain(), recorder.left_out)
        with VariantRunner(source, nothing, settings, 0.0) as runner:
            document = recorder.record(runner)
            if document is not None and not recorder.is_slow:
                suite = replace(parse_suite(document), environment=nothing.environment)
                measurement = measure_recorded_suite(source_code, suite, runner)
                return SuiteRecording(measurement, document, recorder.left_out)
    except MeasurementFailedError as error:
        return _nothing(f"its behaviour could not be recorded: {error}")
    except (RecursionError, MemoryError):
        return _nothing("the source is nested too deep to analyse")
    if document is None:
        return _nothing(recorder.explain(), recorder.left_out)
    suite = replace(parse_suite(document), environment=nothing.environment)
    measurement = measure_suite(source_code, suite, settings, origin="recorded")
    return SuiteRecording(measurement, document, recorder.left_out)


def _nothing(reason: str, left_out: dict[str, str] | None = None) -> SuiteRecording:
    return SuiteRecording(SuiteMeasurement("none", reason), left_out=left_out or {})


class _Recorder:
    def __init__(self, source: SourceText, texts: Iterable[str]) -> None:
        self.source = source
        self.targets, self.left_out = choose_targets(source.tree)
        self.search = InputSearch(source, self.targets, texts, f"record {GENERATOR_VERSION}")
        self.raise_lines = self._list_raise_lines([])
        self.probed_raise_lines = self.raise_lines
        self.raised = frozenset(find_raised(source.tree))
        self.known: dict[int, tuple[Proposal, SourceAnswer]] = {}
        self.is_slow = self.contains_itself = False
        self.lost = 0  # inputs without an answer
        self.inputs: set[str] = set()  # of the candidates
        self.spans = list_branch_spans(source)
        self.branches = self._count_all_branches()
        self.problem = ""

    def _list_raise_lines(self, edits: list[Edit]) -> set[int]:
        """List the lines of statements that raise, after edits that may insert lines."""
        lines: set[int] = set()
        for node in list_nodes(self.source.tree):
            if isinstance(node, ast.Raise):
                start, _ = self.source.span(node)
                shift = sum(edit[2].count("\n") for edit in edits if edit[0] <= start)
                lines.update(range(node.lineno + shift, (node.end_lineno or node.lineno) + shift + 1))
        return lines

    def _count_all_branches(self) -> int:
        """Count the branches that cases can be expected to reach."""
        lines = find_left_out_lines(self.source.tree) | find_special_lines(self.source.tree)
        return sum(line not in lines for line in insert_probes(self.source, "probe")[1].values())

    def explain(self) -> str:
        """Say why there is no suite."""
        if self.problem:
            return self.problem
        if self.left_out:
            names = [f"{name}: {reason}" for name, reason in self.left_out.items()]
            return "; ".join(names)[:500]
        return "the source defines no function and no class"

    # ---- running ---------------------------------------------------------------------------------

    def record(self, runner: VariantRunner) -> dict[str, Any] | None:
        """Search inputs, run them, and return the suite as a document; None if there is nothing to record."""
        probes = insert_all_probes(self.source, runner.probe)
        self.probed_raise_lines = self._list_raise_lines(probes)
        for methods in (False, True):
            self._try(runner, probes, self.search.propose_types(methods))
            if self.problem:
                return None
            if self.contains_itself and self.search.share_nodes():
                self._try(runner, probes, self.search.propose_types(methods))
            self._try(runner, probes, self.search.propose_again(methods))
        self._search_further(runner, probes)
        candidates = self._make_candidates(self._choose_candidates())
        reached = self._find_refused(runner, probes, candidates) if len(candidates) >= MIN_CASES else []
        selected = self._select(runner, candidates, reached)
        if len(selected) < MIN_CASES:
            if selected:
                count = len(selected)
                self.problem = f"only {count} inputs have an answer that is the same each time"
            return None
        return {"kind": "cases", "cases": [candidate.case for candidate in selected]}

    def _search_further(self, runner: VariantRunner, probes: list[Edit]) -> None:
        """Try inputs in rounds; in more of them while they reach what no earlier one did.

        One is enough where many inputs reach all branches, or where there are hardly any others: then mutants
        decide whether there are more.
        """
        idle, reached, is_exhausted = 0, self._count_branches(), False
        for number in range(MAX_ROUNDS):
            is_enough = len(self.known) >= ENOUGH_INPUTS or is_exhausted
            is_complete = self.is_slow or (reached >= self.branches and is_enough)
            if number >= (1 if is_complete else ROUNDS) and (idle > 1 or is_complete):
                return
            proposals = self.search.propose_more()
            self._try(runner, probes, proposals)
            is_exhausted = len(proposals) < FEW_NEW
            idle = idle + 1 if self._count_branches() == reached else 0
            reached = self._count_branches()

    def _count_branches(self) -> int:
        branches = (observation.branches for _, observation in self.known.values())
        return len({number for numbers in branches for number in numbers if number < FIRST_COMPARISON})

    def _try(self, runner: VariantRunner, probes: list[Any], proposals: list[Proposal]) -> None:
        if not proposals:
            return
        # The short ones first: a long one may take all the time.
        proposals = sorted(proposals, key=lambda proposal: proposal.size)
        if self.lost > FEW_LOST:  # those that are alike may all take too long
            order = sorted(range(len(proposals)), key=lambda index: index * SPREAD % (1 << 32))
            proposals = [proposals[index] for index in order]
        observations = self._explore(runner, probes, proposals)
        if self.is_slow:
            proposals = proposals[: len(observations)]
        if not self.known:
            self._check_import(observations)
        accepted = [
            observation.branches if self._is_specified(observation.answer) else None
            for observation in observations
        ]
        # A TypeError of the source's own says that these types are not meant.
        typed = [
            frozenset[int]() if (item.answer or "").startswith(_TYPE_ERROR) and branches else branches
            for item, branches in zip(observations, accepted, strict=True)
        ]
        self.search.learn(proposals, typed)
        self.contains_itself |= any(item.answer == _CONTAINS_ITSELF for item in observations)
        self._repair(runner, probes, list(zip(proposals, observations, strict=True)))
        for proposal, observation, branches in zip(proposals, observations, accepted, strict=True):
            if branches is not None and not _is_empty(proposal.plan):
                self.known[len(self.known)] = (proposal, observation)

    def _repair(
        self, runner: VariantRunner, probes: list[Edit], tried: list[tuple[Proposal, SourceAnswer]]
    ) -> None:
        """Try sequences again without the calls that failed by accident."""
        broken = [
            (proposal, list_right_steps((observation.answer or "null").encode(), self.raised))
            for proposal, observation in tried
            if proposal.plan[0] == "new" and len(proposal.plan[4]) > 1
        ]
        broken = [item for item in broken if not all(item[1])]
        proposals = [] if self.is_slow else self.search.repair(broken)[:MAX_REPAIRED]
        if not proposals:
            return
        observations = self._explore(runner, probes, proposals)
        accepted = [item.branches if self._is_specified(item.answer) else None for item in observations]
        self.search.learn(proposals, accepted)
        for proposal, observation, branches in zip(proposals, observations, accepted, strict=False):
            if branches is not None:
                self.known[len(self.known)] = (proposal, observation)

    def _explore(
        self, runner: VariantRunner, probes: list[Edit], proposals: list[Proposal]
    ) -> list[SourceAnswer]:
        """Run the source on inputs; on fewer, and with more time for each, if it is slow."""
        plans = [_ask_arguments(item.plan) for item in proposals]
        if not self.is_slow:
            observations = runner.explore(probes, plans)
            lost = sum(item.answer is None for item in observations)
            self.lost += lost
            if self.known or lost <= MAX_LOST * len(plans):
                return observations
            self.is_slow = True
        return runner.explore(probes, plans[:MAX_SLOW_PLANS], SLOW_PLAN_SECONDS)

    def _check_import(self, observations: Sequence[SourceAnswer]) -> None:
        answer = next((item.answer for item in observations if item.answer), "")
        if not answer.startswith('["e"'):
            return
        error = json.loads(answer)[1]
        package = find_missing_package(error[1], error[2], frozenset())
        failure = f"the source cannot be imported: {error[1][0][0]}: {error[2]}"
        if package:
            failure = explain([package], "cases")
        elif "relative import" in str(error[2]) and (files := find_missing_files(self.source.tree)):
            failure = f"it imports {files}, which is beside it and was not given: its files belong together"
        self.problem = failure[:500]

    def _is_specified(self, answer: str | None) -> bool:
        """Whether requirements could state an answer, as far as its line is not needed to tell."""
        return is_specified((answer or "null").encode(), self.raised)

    def _make_candidates(self, chosen: Sequence[tuple[Proposal, SourceAnswer]]) -> list[RecordedCase]:
        """Write inputs and their answers as cases, where that can be done."""
        candidates: list[RecordedCase] = []
        for proposal, observation in chosen:
            candidate = self._make_candidate(proposal, observation)
            inputs = json.dumps(list_inputs(candidate.case)) if candidate else ""
            if candidate is not None and inputs not in self.inputs:
                self.inputs.add(inputs)
                candidates.append(candidate)
        return candidates

    def _confirm(self, runner: VariantRunner, candidates: Sequence[RecordedCase]) -> list[bool]:
        """Run inputs again, under other hash seeds, and say which have one answer that a suite can hold."""
        plans = [_ask_arguments(candidate.plan) for candidate in candidates]
        seconds = SLOW_PLAN_SECONDS if self.is_slow else PLAN_SECONDS
        known = [candidate.answer for candidate in candidates]
        again = runner.repeat(plans, known, HASH_SEEDS, seconds)
        return [
            self._is_confirmed(candidate, [answer, *(answers[index] for answers in again)])
            for index, (candidate, answer) in enumerate(zip(candidates, known, strict=True))
        ]

    def _is_confirmed(self, candidate: RecordedCase, answers: list[str | None]) -> bool:
        """Whether all answers are the same, also without probes, and a suite can hold the case."""
        try:
            outcome = agree_on_outcome(answers)
            if outcome is None:
                return False
            CaseWriter(self.raise_lines).write(candidate.plan, outcome)
            parse_suite({"kind": "cases", "cases": [candidate.case]})
        except (InvalidValueError, TestSuiteError, ValueError, TypeError, LookupError, RecursionError):
            return False
        return True

    def _choose_candidates(self) -> list[tuple[Proposal, SourceAnswer]]:
        """Choose inputs: what people wrote, what reaches a branch first, then the shortest of each target."""
        usable = [item for item in self.known.values() if self.search.is_usable(item[0])]
        ordered = sorted(usable, key=lambda item: (item[0].rank, item[0].size))
        chosen: dict[int, tuple[Proposal, SourceAnswer]] = {}
        covered: dict[tuple[str, int], int] = {}
        for number, (proposal, observation) in enumerate(ordered):
            keys = [(proposal.site[0], branch) for branch in observation.branches]
            if proposal.rank == 0 or any(covered.get(key, 0) < 3 for key in keys):
                chosen[number] = ordered[number]
                for key in keys:
                    covered[key] = covered.get(key, 0) + 1
        groups: dict[str, dict[str, list[int]]] = {}
        for number, (proposal, observation) in enumerate(ordered):
            if number not in chosen:
                answers = groups.setdefault(proposal.site[0], {})
                answers.setdefault(observation.answer or "", []).append(number)
        queues = [list(answers.values()) for answers in groups.values()]
        while queues and len(chosen) < MAX_CANDIDATES:
            for queue in queues[: MAX_CANDIDATES - len(chosen)]:
                numbers = queue.pop(0)
                chosen[numbers[0]] = ordered[numbers[0]]
                if len(numbers) > 1:
                    queue.append(numbers[1:])
            queues = [queue for queue in queues if queue]
        limit = MAX_SLOW_PLANS if self.is_slow else 2 * MAX_CANDIDATES
        return [chosen[number] for number in sorted(chosen)][:limit]

    def _make_candidate(self, proposal: Proposal, observation: SourceAnswer) -> RecordedCase | None:
        answer = observation.answer
        try:
            outcome = agree_on_outcome([answer])
            if answer is None or outcome is None:
                return None
            case = CaseWriter(self.probed_raise_lines).write(proposal.plan, outcome)
            text = json.dumps(case)
            if len(text) > MAX_CASE_CHARACTERS or "\\u0000" in text or "\\ud" in text:
                return None
        except (InvalidValueError, ValueError, TypeError, LookupError, RecursionError):
            return None
        return RecordedCase(proposal.plan, observation.branches, proposal.rank, case, len(text), answer)

    # ---- selecting -------------------------------------------------------------------------------

    def _select(
        self, runner: VariantRunner, candidates: list[RecordedCase], reached: list[set[Any]]
    ) -> list[RecordedCase]:
        """Select cases, and others for those that a second look does not confirm."""
        confirmed: set[int] = set()
        has_lost = False
        while True:
            if len(candidates) < MIN_CASES or not reached:
                chosen = list(range(len(candidates)))
            else:
                chosen = select_cases(candidates, reached)
            # Where one answer was not the same, others may not be, either: then all are looked at.
            looked_at = range(len(candidates)) if has_lost else chosen
            requested = [index for index in looked_at if index not in confirmed]
            if not requested:
                self._explain_targets(candidates)
                return [candidates[index] for index in sorted(chosen)]
            results = self._confirm(runner, [candidates[index] for index in requested])
            lost = {index for index, is_right in zip(requested, results, strict=True) if not is_right}
            if not lost and not has_lost:
                self._explain_targets(candidates)
                return [candidates[index] for index in sorted(chosen)]
            kept = [index for index in range(len(candidates)) if index not in lost]
            confirmed = {
                place for place, index in enumerate(kept) if index in confirmed or index in requested
            }
            candidates = [candidates[index] for index in kept]
            reached = [reached[index] for index in kept] if reached else []
            has_lost = has_lost or bool(lost)

    def _find_refused(
        self, runner: VariantRunner, probes: list[Any], candidates: list[RecordedCase]
    ) -> list[set[Any]]:
        """Return for each candidate the branches that it reaches and the mutants that it refuses.

        For mutants that no input refuses further ones are searched, and added to the candidates.
        """
        mutants, _ = split_mutants(generate_mutants(self.source), self.source)
        left_out = find_left_out_lines(self.source.tree)
        mutants = [mutant for mutant in mutants if mutant.line not in left_out]
        mutants = select_mutants(mutants, self.source, MAX_SELECTION_MUTANTS, "select")
        reached: list[set[Any]] = [set(candidate.branches) for candidate in candidates]
        survivors = self._add_refused(runner, dict(enumerate(mutants)), candidates, reached)
        for _ in range(FURTHER_ROUNDS):
            if not survivors or self.is_slow:
                break
            known = len(self.known)
            self._try(runner, probes, self.search.propose_more())
            further = self._make_candidates([self.known[number] for number in range(known, len(self.known))])
            gained: list[set[Any]] = [set() for _ in further]
            survivors = self._add_refused(runner, survivors, further, gained)
            useful = [place for place, items in enumerate(gained) if items]
            candidates += [further[place] for place in useful]
            reached += [gained[place] for place in useful]
        return reached

    def _add_refused(
        self,
        runner: VariantRunner,
        mutants: dict[int, Mutant],
        candidates: list[RecordedCase],
        reached: list[set[Any]],
    ) -> dict[int, Mutant]:
        """Add to what the candidates reach the mutants that they refuse; return the others."""
        if not candidates or not mutants:
            return mutants
        # Short and long ones in turn, since the first that refuse a mutant are enough.
        order = sorted(range(len(candidates)), key=lambda index: index * SPREAD % (1 << 32))
        branches = [find_branch(self.spans, mutant.start, mutant.end) for mutant in mutants.values()]
        chosen = [
            None
            if branch is None
            else frozenset(place for place, index in enumerate(order) if branch in candidates[index].branches)
            for branch in branches
        ]
        edits = [[mutant.edit] for mutant in mutants.values()]
        differs = runner.run_matrix(edits, [candidates[index].plan for index in order], chosen)
        survivors: dict[int, Mutant] = {}
        for number, numbers in zip(mutants, differs, strict=True):
            for place in numbers or ():
                reached[order[place]].add(("mutant", number))
            if numbers is not None and not numbers:
                survivors[number] = mutants[number]
        return survivors

    def _explain_targets(self, candidates: list[RecordedCase]) -> None:
        named = {candidate.plan[1] for candidate in candidates}
        for target in self.targets:
            if target.name not in named:
                self.left_out[target.name] = "no input has an answer that is the same each time"


def _ask_arguments(plan: Plan) -> Plan:
    """Return the plan that also answers what the arguments are before and after each call."""
    return (*plan, "changes")


def _is_empty(plan: Plan) -> bool:
    """Whether a plan makes an object and asks it nothing."""
    return plan[0] == "new" and not plan[4]
