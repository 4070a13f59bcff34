"""What README shows is what runs."""

import re
import shlex
from pathlib import Path

import pytest
from package_names import own

from sj_online import registry
from sj_online.app import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_ci_runs_the_test_command():
    setup, train = (block for block in blocks("bash")[:2])
    assert "sj-online train --out runs/digits" in setup
    venv, install, pytest_ = train.strip().split(" && ")
    script = (ROOT / ".ci/run").read_text().replace("install -q", "install")
    assert f"{venv} && {install}\n" in script
    assert script.endswith(f"{pytest_}\n")


@pytest.mark.parametrize("line", blocks("bash")[2].splitlines())
def test_commands_are_understood(tmp_path, monkeypatch, line):
    """The options exist; nothing is run."""
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(cli, "COMMANDS", dict.fromkeys(cli.COMMANDS, called.append))
    arguments = shlex.split(line, comments=True)
    assert arguments.pop(0) == "sj-online"
    assert cli.main(arguments) == 0
    assert called


def test_rules_and_neurons_are_in_the_tables():
    for group in ("trainers", "neurons"):
        for name in own(group):
            assert f"`{registry.get(group, name).__name__}" in README


def test_every_rule_is_on_the_page_of_rules():
    page = (ROOT / "sj_online/trainer/README.md").read_text()
    for name in own("trainers"):
        assert f"| `{registry.get('trainers', name).__name__}" in page


def test_the_files_of_rules_that_pages_name_exist():
    page = (ROOT / "sj_online/trainer/README.md").read_text()
    files = re.findall(r"`([\w/]+\.py)`", page)
    assert len(files) > 15
    for file in files:
        assert (ROOT / file).exists() or (ROOT / "sj_online/trainer" / file).exists(), file
    named = {Path(file).name for file in files} | {"__init__.py"}
    rules = {registry.get("trainers", name).__module__.rpartition(".")[2] + ".py" for name in own("trainers")}
    assert {path.name for path in (ROOT / "sj_online/trainer").glob("*.py")} - rules <= named


def test_the_rule_in_contributing_passes_the_public_checks():
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    assert code.rstrip().endswith("check_rule(LastStepsOnly)")
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})
    wrong = code.replace("exact = False", "exact = True")
    with pytest.raises(AssertionError, match="declared exact=True"):
        exec(compile(wrong, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})
