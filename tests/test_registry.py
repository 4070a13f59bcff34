import pytest

from sj_online import registry


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_registered_name_loads_and_names_its_paper(group):
    for name in registry.names(group):
        assert registry.get(group, name).paper


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'emfp' is not a registered name of neurons; known: empf"):
        registry.get("neurons", "emfp")
    with pytest.raises(ValueError, match="group='rules' is not one of neurons, layers, trainers, models"):
        registry.names("rules")
