"""The rules of CONTRIBUTING.md that a machine can see, held against every tracked file."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("synthgen", "storage", "tasks", "cli", "migrations")
OURS = [*sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")), ROOT / "celeryconfig.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

# Put together here, so that this file does not hold what it forbids.
FORBIDDEN_ADDRESSES = [
    re.escape(host)
    for host in ("py" + "pi.org/simple", "files.python" + "hosted.org", "registry.npm" + "js.org", "--index" + "-url")
] + [r"https?://\S+\.wh" + "l", r"--find" + "-links", r"/wo" + r"rk/(main|shared)\b", r"file:" + "///"]


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("Not a git checkout: nothing says which files are tracked.")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_wheel_names_every_package_and_no_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    real = {".".join(path.parent.relative_to(ROOT).parts) for path in OURS if path.parent != ROOT}
    assert listed == real
    assert not [name for name in listed if name.startswith("tests")]
    assert project["tool"]["setuptools"]["py-modules"] == ["celeryconfig"]


def test_no_other_distribution_brings_packages_of_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: owners[name] for name in PACKAGES if set(owners.get(name, ["synthgen"])) != {"synthgen"}} == {}


def test_a_module_opens_by_saying_why_it_exists() -> None:
    silent = [path for path in [*OURS, *TESTS] if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert named(silent) == []


def test_only_the_settings_read_the_environment() -> None:
    reading = re.compile(r"\bos\.(environ|getenv|putenv)\b|from os import .*\b(environ|getenv)\b")
    found = [path for path in OURS if reading.search(path.read_text(encoding="utf-8"))]
    # LiteLLM is told by a variable, before it is imported, not to fetch its price list.
    assert set(named(found)) - {"synthgen/engines/litellm.py"} == {"synthgen/settings.py"}


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert named([path for path in [*OURS, *TESTS] if path.stem in NAMELESS]) == []


def test_no_file_is_longer_than_can_be_read_at_a_sitting() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*OURS, *TESTS]}
    assert named([path for path, length in lengths.items() if length > 500]) == []


def test_no_tracked_file_holds_a_download_address_or_a_place_on_one_machine() -> None:
    forbidden = re.compile("|".join(FORBIDDEN_ADDRESSES))
    found = {
        f"{path.relative_to(ROOT)}:{number}": line.strip()
        for path in tracked_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if forbidden.search(line)
    }
    assert found == {}


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+", line)] == []


def test_every_dependency_is_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=;~ ]", requirement)[0].lower() for requirement in wanted}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names - pinned == set()
