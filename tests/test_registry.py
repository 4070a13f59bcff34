import re
from importlib import metadata
from pathlib import Path

import pytest
import test_cli_commands
import test_readme
from package_names import own

from sj_online import registry


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_registered_name_loads_and_names_its_paper(group):
    for name in own(group):
        assert registry.get(group, name).paper


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'emfp' is not a registered name of neurons; known: empf"):
        registry.get("neurons", "emfp")
    with pytest.raises(ValueError, match="group='rules' is not one of neurons, layers, trainers, models"):
        registry.names("rules")


class Stranger(metadata.Distribution):
    """Another package, which registers something that nothing of ours can build in every group."""

    def read_text(self, filename):
        if filename == "METADATA":
            return "Metadata-Version: 2.1\nName: stranger\nVersion: 1\n"
        groups = "".join(f"[sj_online.{group}]\nstrange = no_such_package:Thing\n" for group in registry.GROUPS)
        return groups if filename == "entry_points.txt" else None

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture
def stranger(monkeypatch):
    installed = list(metadata.distributions())
    monkeypatch.setattr(metadata, "distributions", lambda **kwargs: [Stranger(), *installed])


@pytest.mark.parametrize("group", registry.GROUPS)
def test_names_of_other_packages_are_known_and_kept_out_of_the_tests(group, stranger):
    assert "strange" in registry.names(group) and "strange" not in own(group)
    assert own(group) == [name for name in registry.names(group) if name != "strange"]
    with pytest.raises(ValueError, match=f"'strange' of {group} is registered as no_such_package:Thing: No module"):
        registry.get(group, "strange")


def test_the_tests_that_run_at_once_pass_beside_another_package(stranger, capsys):
    for group in registry.GROUPS:
        test_every_registered_name_loads_and_names_its_paper(group)
    test_readme.test_rules_and_neurons_are_in_the_tables()
    test_cli_commands.test_list_shows_every_name_with_its_paper(capsys)


def test_no_test_takes_the_names_of_all_packages():
    """Only these may: they are about what is registered beside our own, or ask whether anything is."""
    allowed = {"test_registry.py", "test_layering.py", "test_plugin_template.py", "test_cli_commands.py"}
    tests = Path(__file__).parent.rglob("*.py")
    found = {path.name for path in tests if re.search(r"registry\.names\(|entry_points\(", path.read_text())}
    assert found - allowed == {"package_names.py"}
