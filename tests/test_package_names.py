"""The tests pass whatever other packages register."""

import re
from importlib import metadata
from pathlib import Path

import pytest
import test_readme
import test_registry
from package_names import own

from sj_online import registry


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
    registry._installed.cache_clear()
    monkeypatch.setattr(metadata, "distributions", lambda **kwargs: [Stranger(), *installed])
    yield
    registry._installed.cache_clear()


@pytest.mark.parametrize("group", registry.GROUPS)
def test_names_of_other_packages_are_known_and_kept_out_of_the_tests(group, stranger):
    assert "strange" in registry.names(group) and "strange" not in own(group)
    ours = {name for name in registry.names(group) if name != "strange"} - registry._host(group).keys()
    assert own(group) == sorted(ours) and (ours or group == "recipes")
    with pytest.raises(ValueError, match=f"'strange' of {group} is registered as no_such_package:Thing: No module"):
        registry.get(group, "strange")


def test_tests_of_all_names_pass_beside_another_package(stranger):
    for group in registry.GROUPS:
        test_registry.test_every_registered_name_loads(group)
    test_readme.test_rules_and_neurons_are_in_the_tables()
    test_readme.test_every_rule_is_on_the_page_of_rules()


def test_no_test_takes_the_names_of_all_packages():
    """Only these may: they are about what is registered beside our own, or ask whether anything is."""
    allowed = {"test_package_names.py", "test_registry.py", "test_layering.py", "test_plugin_template.py"}
    tests = Path(__file__).parent.rglob("*.py")
    found = {path.name for path in tests if re.search(r"registry\.names\(|entry_points\(", path.read_text())}
    assert found - allowed == {"package_names.py"}
