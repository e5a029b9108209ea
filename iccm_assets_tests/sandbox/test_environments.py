"""Judge environments: built from packages, read-only in the sandbox, chosen by imports (J5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iccm_assets.errors import InputError, MissingPackageError
from iccm_assets.sandbox.environments import (
    Environment,
    choose_environment,
    create_environment,
    delete_environment,
    find_environment,
    list_environments,
)
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import open_storage
from iccm_assets.suites.suite_recording import record_suite
from iccm_assets.suites.suite_runner import get_judge_version, run_suite
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.wheels import build_wheel, write_requirements

TWICE = "def twice(x):\n    return 2 * x\n"
SOURCE = "import tinylib\n\ndef f(x: int) -> int:\n    return tinylib.twice(x) + 1\n"
SUITE = {"kind": "cases", "cases": [{"call": "f", "args": [n], "expect": 2 * n + 1} for n in range(6)]}
TESTS = (
    "from implementation import f\nimport tinylib\ndef test_f():\n    assert f(3) == tinylib.twice(3) + 1\n"
)


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    return write_requirements(tmp_path, "r.txt", build_wheel(tmp_path / "wheels", "tinylib", "1.0", TWICE))


@pytest.fixture
def tiny(settings: Settings, requirements: Path) -> Environment:
    return create_environment(settings.home, "tiny", requirements)[0]


def test_an_environment_is_found_by_what_is_installed_in_it(
    settings: Settings, requirements: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    built, is_new = create_environment(settings.home, "tiny", requirements, lines.append)
    assert is_new and built.packages == ("tinylib==1.0",) and built.modules == {"tinylib"}
    assert any("tinylib" in line for line in lines)
    assert create_environment(settings.home, "tiny", requirements) == (built, False)
    elsewhere, _ = create_environment(tmp_path / "other", "same", requirements)
    assert elsewhere.digest == built.digest
    assert find_environment(settings.home, "tiny") == find_environment(settings.home, built.digest[:12])
    assert sorted(os.listdir(settings.home / "environments")) == [built.digest]


def test_a_name_stands_for_the_newest_of_its_environments(
    settings: Settings, tiny: Environment, tmp_path: Path
) -> None:
    wheel = build_wheel(tmp_path / "wheels", "tinylib", "2.0", "def twice(x):\n    return 20 * x\n")
    second, is_new = create_environment(settings.home, "tiny", write_requirements(tmp_path, "2.txt", wheel))
    assert is_new and second.digest != tiny.digest
    assert find_environment(settings.home, "tiny") == second
    assert [item.digest for item in list_environments(settings.home)] == [second.digest, tiny.digest]
    assert choose_environment([SOURCE], None, settings) == second
    assert delete_environment(settings.home, "tiny") == second
    assert find_environment(settings.home, "tiny") == tiny


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("Tiny!", "--no-index\n", "is no name"),
        ("../x", "--no-index\n", "is no name"),
        ("tiny", None, "no such file"),
        ("tiny", "", "name no package"),
        ("tiny", "--no-index\nnot-there==1\n", "could not be installed: ERROR.*not-there"),
        ("tiny", "--no-index\n== broken ==\n", "could not be installed"),
        ("tiny", "\x00\n", "could not be installed"),
    ],
)
def test_what_cannot_be_built_is_a_clear_error_and_leaves_nothing(
    settings: Settings, tmp_path: Path, name: str, text: str | None, problem: str
) -> None:
    path = tmp_path / "requirements.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        create_environment(settings.home, name, path)
    folder = settings.home / "environments"
    assert not folder.exists() or os.listdir(folder) == []


def test_an_import_is_missing_until_an_environment_has_it(settings: Settings, requirements: Path) -> None:
    suite = parse_suite(SUITE)
    before = run_suite(SOURCE, suite, settings)
    assert before.test_pass_rate is None and before.missing_packages == ("tinylib",)
    assert "iccm environment create" in before.reason
    assert measure_suite(SOURCE, suite, settings).status == "none"
    assert record_suite(SOURCE, settings).measurement.status == "none"
    tiny, _ = create_environment(settings.home, "tiny", requirements)
    after = run_suite(SOURCE, suite, settings)
    assert (after.test_pass_rate, after.environment, after.suspect) == (1.0, tiny.digest, False)
    assert measure_suite(SOURCE, suite, settings).status == "usable"
    tests = parse_suite({"kind": "pytest", "files": {"test_f.py": TESTS}})
    assert run_suite(SOURCE, tests, settings).test_pass_rate == 1.0
    recording = record_suite(SOURCE, settings)
    assert (recording.measurement.status, recording.environment) == ("usable", tiny.digest)
    other = run_suite("def f(x):\n    return 2 * x + 1\n", suite, settings)
    assert (other.test_pass_rate, other.environment) == (1.0, "")  # it imports nothing


def test_a_suite_names_its_environment_and_a_missing_one_is_no_verdict(
    settings: Settings, tiny: Environment
) -> None:
    for name in ("tiny", tiny.digest):
        suite = parse_suite({**SUITE, "environment": name})
        assert run_suite("def f(x):\n    return 2 * x + 1\n", suite, settings).environment == tiny.digest
    result = run_suite(SOURCE, parse_suite({**SUITE, "environment": "science"}), settings)
    assert result.test_pass_rate is None and "no environment 'science'" in result.reason
    assert {case.verdict for case in result.results} == {"not_run"}
    measured = measure_suite(SOURCE, parse_suite({**SUITE, "environment": "science"}), settings)
    assert measured.status == "none" and "iccm environment create" in measured.reason


def test_the_default_environment_is_part_of_the_judge_version(settings: Settings, tiny: Environment) -> None:
    assert "tiny" not in get_judge_version(settings) and " " not in get_judge_version(settings)
    judge = settings.judge.model_copy(update={"environment": "tiny"})
    default = settings.model_copy(update={"judge": judge})
    assert get_judge_version(default) == f"{get_judge_version(settings)} in {tiny.digest[:12]}"
    assert choose_environment(["x = 1\n"], None, default) == tiny
    judge = settings.judge.model_copy(update={"environment": "gone"})
    missing = run_suite(SOURCE, parse_suite(SUITE), settings.model_copy(update={"judge": judge}))
    assert missing.test_pass_rate is None and "ICCM_JUDGE__ENVIRONMENT" in missing.reason
    with pytest.raises(MissingPackageError, match="known: tiny"):
        find_environment(settings.home, "gone")


def test_the_smallest_environment_with_all_imports_is_chosen(
    settings: Settings, tiny: Environment, tmp_path: Path
) -> None:
    wheels = [build_wheel(tmp_path / "wheels", name, "1.0", "x = 1\n") for name in ("tinylib", "otherlib")]
    both, _ = create_environment(settings.home, "both", write_requirements(tmp_path, "both.txt", *wheels))
    assert choose_environment(["import tinylib.part\n"], None, settings) == tiny
    assert choose_environment(["import tinylib\nimport notthere\n"], None, settings) == tiny
    assert choose_environment(["import tinylib\n", "from otherlib import x\n"], None, settings) == both
    assert (
        choose_environment(["from . import tinylib\n", "not python", "import os\n"], None, settings) is None
    )


def test_code_cannot_change_its_environment(settings: Settings, tiny: Environment) -> None:
    hostile = (
        "import tinylib, os\n"
        "def f(x):\n"
        "    for change in (lambda: open(tinylib.__file__, 'a').write('#'),\n"
        "                   lambda: os.unlink(tinylib.__file__),\n"
        "                   lambda: os.chmod(tinylib.__file__, 0o777),\n"
        "                   lambda: os.mkdir(os.path.dirname(tinylib.__file__) + '/new')):\n"
        "        try:\n"
        "            change()\n"
        "        except OSError:\n"
        "            continue\n"
        "        return 'changed'\n"
        "    return 'kept'\n"
    )
    suite = parse_suite({"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": "kept"}]})
    assert run_suite(hostile, suite, settings).test_pass_rate == 1.0
    module = Path(tiny.site_packages, "tinylib", "__init__.py")
    assert module.read_text(encoding="utf-8") == TWICE and os.listdir(module.parent).count("new") == 0


def test_results_of_numpy_are_compared_as_python_values(settings: Settings, tmp_path: Path) -> None:
    """Its scalars and arrays have no form in JSON; a module in its place shows how they are read."""
    fake = (
        "class generic:\n    def __init__(self, value):\n        self.value = value\n"
        "    def tolist(self):\n        return self.value\nclass ndarray(generic):\n    pass\n"
    )
    wheel = build_wheel(tmp_path / "wheels", "numpy", "0.1", fake)
    create_environment(settings.home, "arrays", write_requirements(tmp_path, "n.txt", wheel))
    source = "import numpy\ndef f(x):\n    return numpy.ndarray([x, numpy.generic(x + 0.5)])\n"
    suite = parse_suite({"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": [1, 1.5]}]})
    result = run_suite(source, suite, settings)
    assert result.test_pass_rate == 1.0, result.results


def test_an_environment_of_another_home_is_chosen_downloaded_and_judged_in(
    settings: Settings, requirements: Path, tmp_path: Path
) -> None:
    first = settings.model_copy(update={"storage": f"memory://{tmp_path.name}/environments-of-homes"})
    second = first.model_copy(update={"home": tmp_path / "second"})
    built, _ = create_environment(first.home, "tiny", requirements, storage=open_storage(first))
    assert list_environments(second.home) == []
    [listed] = list_environments(second.home, open_storage(second))
    assert (listed.digest, listed.modules) == (built.digest, built.modules)
    assert not Path(listed.site_packages).exists()
    chosen = choose_environment([SOURCE], None, second)
    assert chosen is not None
    assert next(Path(chosen.site_packages).glob("tinylib/__init__.py")).read_text() == TWICE
    assert run_suite(SOURCE, parse_suite(SUITE), second).test_pass_rate == 1.0
    # Its name may change; the other home follows when its list is a minute old.
    create_environment(first.home, "renamed", requirements, storage=open_storage(first))
    assert [item.name for item in list_environments(tmp_path / "third", open_storage(first))] == ["renamed"]
    # Deleting it in one home deletes it for those that have no copy.
    delete_environment(first.home, "renamed", open_storage(first))
    assert list_environments(tmp_path / "third", open_storage(first)) == []
