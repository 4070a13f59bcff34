import pytest

from sj_online.data.split import stratified


def test_every_class_gives_the_same_fraction():
    labels = [index % 3 if index < 150 else 7 for index in range(200)]
    train, validation = stratified(labels, 0.2)
    assert sorted(train + validation) == list(range(200)) and train == sorted(train)
    counts = {label: sum(labels[index] == label for index in validation) for label in (0, 1, 2, 7)}
    assert counts == {0: 10, 1: 10, 2: 10, 7: 10}


def test_the_split_is_drawn_and_fixed():
    first, second = stratified([0] * 100, 0.3), stratified([0] * 100, 0.3)
    assert first == second and len(first[1]) == 30
    assert first[1] not in (list(range(30)), list(range(70, 100)))


def test_the_split_of_a_run_is_that_of_every_later_version():
    """An evaluation must not meet images that an older version has trained on."""
    assert stratified([0] * 10 + [1] * 20, 0.2)[1] == [1, 4, 13, 14, 24, 26]


def test_fractions():
    assert stratified([0, 1, 1], 0.0) == ([0, 1, 2], [])
    assert len(stratified([0] * 10, 0.99)[1]) == 10
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"validation={fraction} must be from 0 to below 1"):
            stratified([0], fraction)
