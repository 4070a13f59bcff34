import pytest

from sj_online.data import EpochSampler, EvaluationSampler


def flat(batches):
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_see_the_batches_of_one_process(world):
    one = list(EpochSampler(50, 12, seed=3, epoch=2))
    ranks = [list(EpochSampler(50, 12, seed=3, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert len(one) == 4 and all(len(batches) == 4 for batches in ranks)
    for number, batch in enumerate(one):
        parts = [batches[number] for batches in ranks]
        assert sorted(flat(parts)) == sorted(batch)
        assert {len(part) for part in parts} == {12 // world}
    seen = [index for _, index in flat(one)]
    assert len(set(seen)) == 48 and {epoch for epoch, _ in flat(one)} == {2}


def test_the_order_depends_on_seed_and_epoch():
    def order(**options):
        return [index for _, index in flat(EpochSampler(100, 10, **options))]

    assert order(seed=0) == order(seed=0) != list(range(100))
    assert order(seed=0) != order(seed=1) and order(seed=0) != order(seed=0, epoch=1)
    assert order(seed=0, shuffle=False) == list(range(100))


def test_going_on_within_an_epoch_leaves_out_what_was_seen():
    sampler = EpochSampler(20, 4, seed=0, epoch=6)
    whole = list(sampler)
    assert len(sampler) == 5
    sampler.begin(6, 2)
    assert len(sampler) == 3 and list(sampler) == whole[2:]
    sampler.begin(7)
    assert len(sampler) == 5 and list(sampler)[0][0][0] == 7
    sampler.begin(7, 9)
    assert len(sampler) == 0 and list(sampler) == []


def test_a_last_batch_that_is_not_full_is_left_out_or_kept():
    assert [len(batch) for batch in EpochSampler(10, 4, seed=0)] == [4, 4]
    kept = EpochSampler(10, 4, seed=0, drop_last=False)
    assert [len(batch) for batch in kept] == [4, 4, 2] and len(kept) == 3
    assert sorted(index for _, index in flat(kept)) == list(range(10))
    assert len(EpochSampler(12, 4, seed=0, drop_last=False)) == len(EpochSampler(12, 4, seed=0)) == 3


def test_batches_that_cannot_be_are_refused():
    assert len(EpochSampler(4, 4, seed=0)) == 1
    assert [len(batch) for batch in EpochSampler(3, 1, seed=0)] == [1, 1, 1]
    for batch_size in (5, 0):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be from 1 to the 4 training items"):
            EpochSampler(4, batch_size, seed=0)
    with pytest.raises(ValueError, match="batch_size=64 does not divide over 3 ranks; take 63"):
        EpochSampler(100, 64, seed=0, world=3)
    with pytest.raises(ValueError, match="batch_size=2 does not divide over 3 ranks; take 3"):
        EpochSampler(100, 2, seed=0, world=3)
    uneven = EpochSampler(8, 8, seed=0, world=3, rank=2, drop_last=False)
    assert [len(batch) for batch in uneven] == [2]


@pytest.mark.parametrize("length, batch_size, world", [(10, 4, 1), (11, 4, 3), (5, 1, 2), (2, 8, 4), (12, 6, 3)])
def test_evaluation_sees_each_item_once_over_all_ranks(length, batch_size, world):
    ranks = [EvaluationSampler(length, batch_size, rank=rank, world=world) for rank in range(world)]
    assert sorted(flat(flat(ranks))) == list(range(length))
    for sampler in ranks:
        assert len(list(sampler)) == len(sampler)
        assert all(1 <= len(batch) <= max(1, batch_size // world) for batch in sampler)
    assert len(list(ranks[0])[0]) == min(max(1, batch_size // world), -(-length // world))


def test_evaluation_is_in_order():
    assert list(EvaluationSampler(5, 2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        EvaluationSampler(5, 0)
