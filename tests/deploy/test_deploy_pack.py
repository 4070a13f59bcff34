import pytest
import torch

from sj_online.deploy.pack import pack, packed_size, unpack
from sj_online.deploy.runtime import pack_synapse


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("bits", [1, 2])
def test_every_level_comes_back(numel, bits):
    levels = torch.randint(0, 2, (numel,)) * 2.0 - 1 if bits == 1 else torch.randint(-1, 2, (numel,)).double()
    packed = pack(levels, bits)
    assert packed.dtype == torch.uint8 and packed.numel() == packed_size(numel, bits) == -(-numel * bits // 8)
    assert torch.equal(unpack(packed, levels.shape, bits, levels.dtype), levels)


def test_levels_are_packed_in_row_major_order_whatever_the_memory_layout():
    levels = torch.randint(0, 2, (3, 5)) * 2.0 - 1
    assert torch.equal(pack(levels.t().contiguous().t(), 1), pack(levels, 1))


def test_only_convolutions_and_linear_layers_are_packed():
    with pytest.raises(ValueError, match="BatchNorm2d"):
        pack_synapse(torch.nn.BatchNorm2d(3), bits=1)
