"""Which parameters are weight matrices, and that each unfolds and folds without loss."""

import pytest
import torch
from torch import nn

from speclock.errors import InputError
from speclock.spectra import weight_matrices


def shapes(module, **patterns):
    return {w.name: w.shape for w in weight_matrices(module, **patterns)}


LAYERS = {
    "linear": (nn.Linear(5, 3), {"weight": (3, 5)}),
    "embedding": (nn.Embedding(7, 4), {"weight": (7, 4)}),
    "conv1d": (nn.Conv1d(3, 8, 5), {"weight": (8, 15)}),
    "conv2d": (nn.Conv2d(3, 8, (2, 5)), {"weight": (8, 30)}),
    "conv2d to one channel": (nn.Conv2d(3, 1, 5), {"weight": (1, 75)}),
    "grouped conv": (nn.Conv2d(4, 8, 3, groups=2), {"weight": (8, 18)}),
    "conv3d": (nn.Conv3d(2, 3, 2), {"weight": (3, 16)}),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 3), {"weight": (6, 36)}),
    "grouped transposed conv": (nn.ConvTranspose2d(4, 6, 3, groups=2), {"weight": (6, 18)}),
    "lstm": (
        nn.LSTM(5, 4, bidirectional=True),
        {
            "weight_ih_l0": (16, 5),
            "weight_hh_l0": (16, 4),
            "weight_ih_l0_reverse": (16, 5),
            "weight_hh_l0_reverse": (16, 4),
        },
    ),
    "attention": (nn.MultiheadAttention(8, 2), {"in_proj_weight": (24, 8), "out_proj.weight": (8, 8)}),
    "separate attention": (
        nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        {
            "q_proj_weight": (8, 8),
            "k_proj_weight": (8, 6),
            "v_proj_weight": (8, 4),
            "out_proj.weight": (8, 8),
        },
    ),
    "norms have none": (nn.Sequential(nn.LayerNorm(4), nn.BatchNorm2d(3)), {}),
    "empty": (nn.ParameterDict({"a": nn.Parameter(torch.zeros(0, 3))}), {}),
    "integers": (
        nn.ParameterDict({"a": nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)}),
        {},
    ),
    "positions": (
        nn.ParameterDict(
            {"p": nn.Parameter(torch.randn(1, 9, 4)), "cls": nn.Parameter(torch.randn(1, 1, 4))}
        ),
        {"p": (9, 4), "cls": (1, 4)},
    ),
    "row": (nn.ParameterDict({"a": nn.Parameter(torch.randn(1, 4))}), {"a": (1, 4)}),
    "experts": (nn.ParameterDict({"e": nn.Parameter(torch.randn(3, 4, 5))}), {"e": (3, 20)}),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_which_and_what_shape(layer):
    module, expected = LAYERS[layer]
    assert shapes(module) == expected
    for w in weight_matrices(module):
        assert tuple(w.matrix.shape) == w.shape
        assert torch.equal(w.fold(w.matrix), w.parameter)


@pytest.mark.parametrize("layer", LAYERS)
def test_assign_writes_what_matrix_reads(layer):
    module, _ = LAYERS[layer]
    for w in weight_matrices(module):
        target = torch.randn(w.shape, dtype=torch.float64)
        w.assign_(target)
        assert torch.equal(w.matrix, target.float())


@pytest.mark.parametrize("layer", ["linear", "embedding", "conv2d", "grouped conv", "lstm", "positions"])
def test_the_matrix_is_a_view(layer):
    for w in weight_matrices(LAYERS[layer][0]):
        with torch.no_grad():
            w.matrix.fill_(0.5)
        assert (w.parameter == 0.5).all()


def test_convolution_unfolds_to_what_it_multiplies():
    conv = nn.Conv2d(3, 4, 3, bias=False)
    x = torch.randn(2, 3, 6, 5)
    columns = nn.functional.unfold(x, 3)  # (2, in·kh·kw, places)
    W = weight_matrices(conv)[0].matrix
    torch.testing.assert_close((W @ columns).reshape(2, 4, 4, 3), conv(x))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_has_one_row_for_each_output_channel(groups):
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    W = weight_matrices(conv)[0]
    x = torch.randn(1, 4, 5, 5)
    before = conv(x)
    rows = W.matrix.detach().clone()
    rows[2] = 0
    W.assign_(rows)
    after = conv(x)
    assert (after[:, 2] == 0).all()
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(after[:, kept], before[:, kept])


def test_channels_last_keeps_its_values():
    conv = nn.Conv2d(3, 4, 3)
    expected = conv.weight.detach().flatten(1).clone()
    conv = conv.to(memory_format=torch.channels_last)
    w = weight_matrices(conv)[0]
    assert torch.equal(w.matrix, expected)
    w.assign_(2 * expected)
    assert torch.equal(conv.weight.flatten(1), 2 * expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.again = self.body
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_come_once_and_answer_to_each_name():
    assert shapes(Tied()) == {"embed.weight": (7, 4), "body.weight": (4, 4)}
    assert shapes(Tied(), exclude=["head.*"]) == {"body.weight": (4, 4)}
    assert shapes(Tied(), include=["again.weight"]) == {"body.weight": (4, 4)}


def test_names_are_those_of_named_parameters():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 1)))
    assert list(shapes(model)) == [name for name, p in model.named_parameters() if p.ndim > 1]


def test_include_then_exclude():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    assert list(shapes(model, include=["a*"])) == ["a.weight", "ab.weight"]
    assert list(shapes(model, include=["a*"], exclude=["ab.*"])) == ["a.weight"]
    assert list(shapes(model, include=["c.*", "a.*"])) == ["a.weight", "c.weight"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_match_names_the_nearest(option):
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    with pytest.raises(InputError, match=rf"{option} 'encodr\.\*' .*Did you mean 'encoder.weight'\?"):
        weight_matrices(model, **{option: ["encodr.*"]})


def test_a_pattern_on_a_model_without_matrices():
    with pytest.raises(InputError, match="no weight matrix"):
        weight_matrices(nn.LayerNorm(3), include=["*"])


def test_lazy_parameters_are_refused():
    with pytest.raises(InputError, match="Run one batch"):
        weight_matrices(nn.LazyLinear(3))
