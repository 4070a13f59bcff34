import torch

from sj_online.analysis import SavedBytes


def test_peak_is_of_live_graphs():
    x = torch.ones(100, requires_grad=True)
    with SavedBytes() as saved:
        for _ in range(5):
            (x.exp()).sum().backward()
    assert saved.peak == 400 and saved.now == 0


def test_graphs_held_together_add_up():
    x = torch.ones(100, requires_grad=True)
    with SavedBytes() as saved:
        held = [x.exp() for _ in range(5)]
    assert saved.peak == saved.now == 2000
    del held
    assert saved.now == 0


def test_a_region_counts_once_and_overlaps_are_merged():
    x = torch.ones(10, 10)
    w = torch.ones(10, requires_grad=True)
    with SavedBytes(exclude=[w]) as saved:
        held = [w * x[0], w * x[0], w * x[1:3].sum(0), (w * x[:2])]
    assert saved.now == (20 + 10) * 4  # rows 0 and 1 of x, and the fresh sum
    del held[3], held[0]
    assert saved.now == 20 * 4


def test_excluded_storages_do_not_count():
    x, w = torch.ones(10), torch.ones(10, requires_grad=True)
    with SavedBytes(exclude=[x, w]) as saved:
        held = w * x[2:4].sum() + (w * x).sum()
    assert held.requires_grad and saved.peak == 4


def test_the_tangent_of_a_constant_holds_no_memory():
    """Forward-mode differentiation saves such tensors; they have no storage to look at."""
    saved = SavedBytes()
    kept = saved._pack(torch._efficientzerotensor((4,)))
    assert saved.peak == 0 and not kept.tensor.any()
    assert saved._pack(torch.zeros(4)).tensor.shape == (4,) and saved.peak == 16
