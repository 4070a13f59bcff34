"""What a synapse is."""

from torch import nn

SYNAPSES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def is_synapse(module: nn.Module) -> bool:
    """Whether a module is a weight and its layer: a linear map, up to the bias, of one input.

    Convolutions, transposed convolutions and linear layers are: torch's, the host's and all that derive from them, with
    binary, ternary, standardised or parametrised weights. ``nn.Bilinear`` is not, as it is linear in neither input
    alone once both come from the network; nor are layers that hold synapses, as attention does, or mix time steps, as
    recurrent layers do.

    Example:
        >>> [is_synapse(m) for m in (nn.Linear(2, 2), nn.ConvTranspose1d(2, 2, 1), nn.Bilinear(2, 2, 2), nn.ReLU())]
        [True, True, False, False]
    """
    return isinstance(module, SYNAPSES)
