"""The digits and a network of 1,714 parameters."""

from sj_online.app import reader
from sj_online.app.build import build

SMALL = {"num_steps": 2, "model": {"name": "small_vgg", "options": {"width": 4}}, "fabric": {"accelerator": "cpu"}}


def recipe(**changes):
    return reader.build(SMALL, [changes])


def parts(**changes):
    return build(recipe(**changes), rehearsal=True)
