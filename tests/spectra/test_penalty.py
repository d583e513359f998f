"""The penalty and its gradient against dense autograd through ``svdvals``, cold, warm, resumed and lost."""

import copy
import io
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from speclock.errors import InputError
from speclock.spectra import SpectralPenalty, weight_matrices


def seeded(build, seed=0):
    torch.manual_seed(seed)
    return build()


def network():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 20, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(980, 64),
            nn.ReLU(),
            nn.Linear(64, 5),
        )
    )


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(16, 1, 14, 14, generator=generator), torch.randint(5, (16,), generator=generator)


def dense_penalty(model, k):
    """(1/n) Σσ with the SVD in the graph, as Algorithm 1 is written."""
    sigma = [torch.linalg.svdvals(w.matrix.double())[:k] for w in weight_matrices(model)]
    return torch.cat(sigma).mean()


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(model, penalty, steps, optimizer, alpha=0.5, check=None):
    for x, y in batches(steps):
        optimizer.zero_grad()
        (alpha * cross_entropy(model(x), y)).backward()
        penalty.add_gradient_(-(1 - alpha))
        if check is not None:
            check()
        optimizer.step()


# The isolated leading σ make the top-k space, and so the gradient, well defined.
def separate_(model, k):
    for w in weight_matrices(model):
        U, sigma, Vh = torch.linalg.svd(w.matrix.detach(), full_matrices=False)
        boost = torch.ones_like(sigma)
        boost[:k] = torch.linspace(3, 2, boost[:k].numel())
        w.assign_((U * (sigma * boost)) @ Vh)
    return model


@given(
    st.sampled_from([(3, 40), (40, 3), (25, 25), (1, 6), (1, 1), (60, 20)]),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=50, deadline=None)
def test_both_paths_equal_dense_autograd(shape, k, dtype, scale):
    model = separate_(seeded(lambda: nn.Linear(shape[1], shape[0], bias=False)), k).to(dtype)
    with torch.no_grad():
        model.weight.mul_(scale)
    exact = copy.deepcopy(model).double()
    expected = dense_penalty(exact, k)
    expected.backward()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        taped, direct = (copy.deepcopy(model) for _ in range(2))
        penalty = SpectralPenalty(taped, k, tolerance=1e-4)
        value = penalty()
        value.backward()
        returned = SpectralPenalty(direct, k, tolerance=1e-4).add_gradient_(1.0)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert returned == pytest.approx(expected.item(), rel=1e-5)

    coarse = 1e-2 if dtype is torch.bfloat16 else 1e-3
    assert direct.weight.grad.dtype == dtype
    torch.testing.assert_close(direct.weight.grad, taped.weight.grad, rtol=2e-2 * (coarse > 1e-3), atol=1e-6)
    torch.testing.assert_close(taped.weight.grad.double(), exact.weight.grad, rtol=coarse, atol=coarse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 2])
def test_both_paths_agree_on_a_whole_network_with_a_gradient_in_place(k, dtype):
    model = network().to(dtype)
    x, y = next(iter(batches(1)))
    other = copy.deepcopy(model)
    (0.7 * cross_entropy(model(x.to(dtype)), y) - 0.3 * SpectralPenalty(model, k)()).backward()
    (0.7 * cross_entropy(other(x.to(dtype)), y)).backward()
    before = {name: p.grad.data_ptr() for name, p in other.named_parameters()}
    SpectralPenalty(other, k).add_gradient_(-0.3)
    assert before == {name: p.grad.data_ptr() for name, p in other.named_parameters()}
    accuracy = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 1e-3}
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradients(other)[name], gradient, msg=name, **accuracy)


def test_the_gradient_is_created_where_there_is_none():
    model = separate_(network(), 2)
    SpectralPenalty(model, 2, tolerance=1e-4).add_gradient_(-1.0)
    exact = copy.deepcopy(model).double()
    exact.zero_grad()
    (-dense_penalty(exact, 2)).backward()
    for w, e in zip(weight_matrices(model), weight_matrices(exact), strict=True):
        torch.testing.assert_close(w.parameter.grad.double(), e.parameter.grad, rtol=1e-3, atol=1e-4)
    assert model[0].bias.grad is None


def test_memory_layouts_that_do_not_unfold():
    model = network()
    plain, last = copy.deepcopy(model), copy.deepcopy(model).to(memory_format=torch.channels_last)
    SpectralPenalty(plain).add_gradient_(1.0)
    SpectralPenalty(last).add_gradient_(1.0)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(last)[name].contiguous(), gradient)


LAYERS = {
    "lstm": lambda: nn.LSTM(12, 20),
    "attention": lambda: nn.MultiheadAttention(32, 4),
    "embedding": lambda: nn.Embedding(500, 24),
    "grouped": lambda: nn.ConvTranspose2d(8, 40, 3, groups=2),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_every_kind(layer):
    model = separate_(seeded(LAYERS[layer]), 2)
    penalty = SpectralPenalty(model, 2, tolerance=1e-4)
    assert penalty().item() == pytest.approx(dense_penalty(model, 2).item(), rel=1e-5)
    sigma = penalty.sigma()
    assert list(sigma) == [w.name for w in weight_matrices(model)]
    for w in weight_matrices(model):
        exact = torch.linalg.svdvals(w.matrix.detach().double())[:2]
        torch.testing.assert_close(sigma[w.name].double(), exact, rtol=1e-5, atol=0.0)


def test_n_is_the_number_of_sigmas_and_tied_weights_count_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 1, bias=False)})
    model["c"] = nn.Linear(2, 2, bias=False)
    model["c"].weight = model["a"].weight
    with torch.no_grad():
        model["a"].weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        model["b"].weight.copy_(torch.tensor([[3.0, 4.0]]))
    penalty = SpectralPenalty(model, top_k=2)
    with pytest.warns(UserWarning, match=r"b\.weight \(1\)"):
        value = penalty()
    assert value.item() == pytest.approx((3 + 1 + 5) / 3)
    penalty.add_gradient_(1.0)  # warns no second time
    torch.testing.assert_close(model["b"].weight.grad, torch.tensor([[0.6, 0.8]]) / 3)
    torch.testing.assert_close(model["a"].weight.grad, torch.eye(2) / 3)


def test_rank_below_k_warns_and_uses_what_is_there():
    model = nn.Linear(30, 20, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.outer(torch.ones(20), torch.ones(30)))
    with pytest.warns(UserWarning, match=r"top_k=2 .* weight \(1\)"):
        value = SpectralPenalty(model, top_k=2).add_gradient_(1.0)
    assert value == pytest.approx(math.sqrt(600), rel=1e-5)
    torch.testing.assert_close(model.weight.grad, torch.full((20, 30), 1 / math.sqrt(600)))


def test_zero_weights_have_no_pull_until_they_move():
    model = nn.Linear(30, 20, bias=False)
    nn.init.zeros_(model.weight)
    penalty = SpectralPenalty(model, top_k=1)
    with pytest.warns(UserWarning, match=r"weight \(0\)"):
        assert penalty.add_gradient_(1.0) == 0
    assert (model.weight.grad == 0).all()
    with torch.no_grad():
        model.weight[3, 4] = 2.0
    for _ in range(3):
        value = penalty.add_gradient_(1.0)
    assert value == pytest.approx(2.0, rel=1e-5)


def test_frozen_and_excluded_weights_are_left_alone():
    model = network()
    model[5].weight.requires_grad_(False)
    penalty = SpectralPenalty(model, exclude=["0.*"])
    assert [w.name for w in penalty.matrices] == ["2.weight", "7.weight"]
    penalty.add_gradient_(1.0)
    assert list(gradients(model)) == ["2.weight", "7.weight"]


def test_a_holder_of_a_module_will_do():
    class Holder:
        module = network()

    assert len(SpectralPenalty(Holder()).matrices) == 4


def test_bad_input():
    with pytest.raises(InputError, match="top_k must be 1 or more, got 0"):
        SpectralPenalty(network(), top_k=0)
    with pytest.raises(InputError, match=r"Did you mean '7\.weight'"):
        SpectralPenalty(network(), include=["7.wieght"])
    with pytest.raises(InputError, match="no trainable weight matrix"):
        SpectralPenalty(network().requires_grad_(False))


def test_sparse_gradients_are_refused():
    model = nn.Embedding(50, 20, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match="sparse=False"):
        SpectralPenalty(model).add_gradient_(1.0)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_refresh_keeps_up_with_training(optimizer):
    model = network()
    penalty = SpectralPenalty(model, top_k=2)
    missed = []

    def check():
        for track in penalty._tracks:
            W = track.matrix.matrix.detach()
            held = float((track.U * (W @ track.V)).sum())
            missed.append(1 - held / float(torch.linalg.svdvals(W.double())[:2].sum()))

    train(model, penalty, 200, OPTIMIZERS[optimizer](model.parameters()), check=check)
    assert min(missed) > -1e-5  # held vectors never claim more than there is
    assert max(missed) < 0.15
    assert sum(missed) / len(missed) < 0.02
    assert sum(missed[-40:]) / 40 < 0.01
    for w in weight_matrices(model):
        exact = torch.linalg.svdvals(w.matrix.detach().double())[:2]
        torch.testing.assert_close(penalty.sigma()[w.name].double(), exact, rtol=1e-3, atol=0.0)


def test_a_slowly_moving_matrix_is_refreshed_seldom_and_a_fast_one_often():
    model = separate_(nn.ModuleDict({"slow": nn.Linear(40, 40), "fast": nn.Linear(40, 40)}), 2)
    penalty = SpectralPenalty(model, top_k=2, max_interval=8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        penalty.add_gradient_(0.0)
        with torch.no_grad():
            fast = model["fast"].weight
            fast.add_(0.1 * fast.norm() / 40 * torch.randn(40, 40, generator=generator))
    slow, fast = penalty._tracks
    assert slow.interval == 8
    assert fast.interval < 8


def test_warm_equals_cold():
    model = separate_(network(), 2)
    warm = SpectralPenalty(model, top_k=2, tolerance=1e-3, max_interval=1)
    train(model, warm, 30, torch.optim.SGD(model.parameters(), lr=0.01))
    cold = SpectralPenalty(model, top_k=2, tolerance=1e-3, seed=7)
    assert warm().item() == pytest.approx(cold().item(), rel=1e-4)
    model.zero_grad()
    warm.add_gradient_(1.0)
    first = gradients(model)
    model.zero_grad()
    cold.add_gradient_(1.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(first[name], gradient, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("restart", [True, False])
def test_a_lost_basis_is_sought_anew(restart):
    model, other = separate_(network(), 2), separate_(seeded(network, 0), 2)
    generator = torch.Generator().manual_seed(5)
    for w in weight_matrices(other):
        w.assign_(w.matrix[:, torch.randperm(w.shape[1], generator=generator)].flip(0).detach())
    penalty = SpectralPenalty(model, top_k=2, max_interval=4)
    for _ in range(8):
        penalty.add_gradient_(0.0)
    model.load_state_dict(other.state_dict())
    if restart:
        penalty.restart()
    for _ in range(1 if restart else 5):
        penalty.add_gradient_(0.0)
    assert penalty().item() == pytest.approx(dense_penalty(other, 2).item(), rel=1e-2)


def test_a_direction_that_rises_outside_the_basis_is_seen():
    model = nn.Linear(60, 60, bias=False)
    with torch.no_grad():  # exactly invariant subspaces: nothing leaks into the basis by itself
        model.weight.copy_(torch.diag(torch.linspace(2, 1, 60)))
    penalty = SpectralPenalty(model, top_k=1, max_interval=1)
    for _ in range(60):
        penalty.add_gradient_(0.0)
    with torch.no_grad():
        model.weight[59, 59] = 10.0
    for _ in range(4):
        value = penalty.add_gradient_(0.0)
    assert value == pytest.approx(10.0, rel=1e-4)


def test_diverged_weights_show_in_the_value_and_recovery_is_possible():
    model = network()
    good = copy.deepcopy(model.state_dict())
    penalty = SpectralPenalty(model, max_interval=1)
    before = penalty.add_gradient_(0.0)
    with torch.no_grad():
        model[5].weight[0, 0] = math.nan
    assert math.isnan(penalty.add_gradient_(0.0))
    model.load_state_dict(good)
    assert penalty.add_gradient_(0.0) == pytest.approx(before, rel=0.02)


def test_a_resumed_run_continues_bit_for_bit():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    penalty = SpectralPenalty(model, top_k=2, seed=3)
    train(model, penalty, 23, optimizer)

    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "penalty": penalty.state_dict()}, file)
    train(model, penalty, 25, optimizer)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(saved["model"])
    again = SpectralPenalty(resumed, top_k=2, seed=99)
    again.load_state_dict(saved["penalty"])
    train(resumed, again, 25, torch.optim.SGD(resumed.parameters(), lr=0.05))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_saved_state_is_not_changed_by_going_on():
    model = network()
    penalty = SpectralPenalty(model)
    penalty.add_gradient_(0.0)
    state = penalty.state_dict()
    kept = copy.deepcopy(state)
    train(model, penalty, 5, torch.optim.SGD(model.parameters(), lr=0.1))
    for name, entry in state["matrices"].items():
        assert torch.equal(entry["basis"], kept["matrices"][name]["basis"])


def test_a_state_of_other_matrices_is_refused():
    state = SpectralPenalty(network()).state_dict()
    with pytest.raises(InputError, match=r"'0\.weight' is only in one"):
        SpectralPenalty(network(), exclude=["0.*"]).load_state_dict(state)


def test_same_seed_same_run():
    runs = []
    for _ in range(2):
        model = network()
        train(model, SpectralPenalty(model, seed=5), 20, torch.optim.SGD(model.parameters(), lr=0.05))
        runs.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))


def test_sigma_changes_no_state():
    model = network()
    penalty = SpectralPenalty(model)
    state = copy.deepcopy(penalty.state_dict())
    penalty.sigma()
    assert torch.equal(state["generator"], penalty.state_dict()["generator"])
    penalty.add_gradient_(1.0)
    first = gradients(model)
    other = network()
    SpectralPenalty(other).add_gradient_(1.0)
    for name, gradient in gradients(other).items():
        assert torch.equal(gradient, first[name])


def test_locking_raises_sigma():
    model = network()
    penalty = SpectralPenalty(model, top_k=1)
    before = {name: float(s[0]) for name, s in penalty.sigma().items()}
    train(model, penalty, 50, torch.optim.SGD(model.parameters(), lr=0.05), alpha=0.1)
    for name, sigma in penalty.sigma().items():
        assert float(sigma[0]) > before[name] + 0.3
