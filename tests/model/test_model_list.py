from sj_online.app.cli import _describe


def test_the_list_shows_paper_parameters_and_packed_size_of_a_model():
    line = _describe("models", "hdlif_resnet18")
    assert line == "EM-PF / HD-LIF; 11,174,090 parameters, weights packed in 1.42 MB"
