"""Network architectures, built from this package's neurons and layers."""

from sj_online.model.hdlif import (
    hdlif_resnet,
    hdlif_resnet18,
    hdlif_resnet19,
    hdlif_resnet34,
    hdlif_vgg,
    hdlif_vgg13,
    hdlif_vgg_snn,
    small_vgg,
)
from sj_online.model.lmh import (
    lmh_ms_resnet34,
    lmh_resnet,
    lmh_resnet18,
    lmh_resnet19,
    lmh_resnet19_wide,
    lmh_resnet20,
    lmh_vgg,
    lmh_vgg13,
    lmh_vgg16,
)
from sj_online.model.ottt import nf_resnet34, ottt_vgg, ottt_vgg_f
from sj_online.model.sltt import sltt_preact_resnet18
from sj_online.model.stol import stol_ms_resnet18, stol_sew_resnet34, stol_vgg11

__all__ = [
    "hdlif_resnet",
    "hdlif_resnet18",
    "hdlif_resnet19",
    "hdlif_resnet34",
    "hdlif_vgg",
    "hdlif_vgg13",
    "hdlif_vgg_snn",
    "lmh_ms_resnet34",
    "lmh_resnet",
    "lmh_resnet18",
    "lmh_resnet19",
    "lmh_resnet19_wide",
    "lmh_resnet20",
    "lmh_vgg",
    "lmh_vgg13",
    "lmh_vgg16",
    "nf_resnet34",
    "ottt_vgg",
    "ottt_vgg_f",
    "sltt_preact_resnet18",
    "small_vgg",
    "stol_ms_resnet18",
    "stol_sew_resnet34",
    "stol_vgg11",
]
