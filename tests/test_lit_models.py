"""The two networks and how they learn."""

import copy
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from datamodules import CIFAR10DataModule, CurveDataModule
from lit_models import FunctionRegressor, ResNet20, ResNet20Classifier, onednn
from lit_models.mlps import ElementwiseAdam, MLPs
from lit_models.muon import Muon, orthogonalized
from lit_models.onednn import can_train_in_mkldnn, cpu_has_bfloat16, in_mkldnn
from lit_models.resnet20 import resnet20_of
from lit_models.resnet20_classifier import SHIPPED

OFF = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET: dict[str, Any] = {"accelerator": "cpu", **dict.fromkeys(OFF, False)}


# ResNet-20


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.269722), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_the_papers_family(depth: int, millions: float) -> None:
    """Table 6 of He et al. 2015 has the numbers of parameters."""
    net = ResNet20(depth=depth)
    accuracy = {20: 0, 110: 0.05}.get(depth, 0.006)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0, abs=accuracy)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    block = ["conv1", "bn1", "conv2", "bn2"]
    assert [n.split(".")[-1] for n in names] == ["conv1", "bn1", *block * (depth // 2 - 1), "linear"]
    assert len(resnet20_of(net.state_dict()).layer3) == (depth - 2) / 6


def formula_of_resnet20(state: Sequence[Tensor], x: Tensor, training: bool) -> Tensor:
    """The paper's network once more, as formulas, from the entries of its state dict in their order."""
    left = iter([t for t in state if t.dim() > 0])  # without the counters of batch normalization

    def conv_bn(x: Tensor, stride: int = 1) -> Tensor:
        x = F.conv2d(x, next(left), stride=stride, padding=1)
        scale, offset, mean, var = itertools.islice(left, 4)
        if training:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scale = scale / (var + 1e-5).sqrt()
        return x * scale[:, None, None] + (offset - mean * scale)[:, None, None]

    x = conv_bn(x).relu()
    for stage, block in itertools.product(range(3), range(3)):
        shrink = stage > 0 and block == 0
        shortcut = x
        if shrink:  # option A: every second pixel, and channels of zeros before and behind
            zeros = torch.zeros(len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
            shortcut = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
        x = (conv_bn(conv_bn(x, 2 if shrink else 1).relu()) + shortcut).relu()
    weight, bias = left
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ weight.T + bias


@pytest.mark.parametrize("training", [True, False])
def test_resnet20_computes_the_papers_network(training: bool) -> None:
    torch.manual_seed(0)
    net = ResNet20().double().train(training)
    for tensor in net.state_dict().values():  # nothing is left at 0 or 1, where a mistake might not show
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), formula_of_resnet20(list(net.state_dict().values()), x, training))


@pytest.mark.parametrize("he_init", [True, False])
def test_initial_variance(he_init: bool) -> None:
    """He: 2 / fan_in, normal. PyTorch: uniform on +-1 / sqrt(fan_in), whose variance is 1 / (3 fan_in)."""
    torch.manual_seed(0)
    for weight in (p for p in ResNet20(he_init=he_init).parameters() if p.dim() > 1):
        fan_in = weight[0].numel()
        expected = 2 / fan_in if he_init else 1 / (3 * fan_in)
        # The variance of n normal numbers has the relative deviation sqrt(2 / n); of uniform ones less.
        assert weight.var().item() == pytest.approx(expected, rel=5 * (2 / weight.numel()) ** 0.5)


def test_growth() -> None:
    """A step without the last blocks, then one with them; at a learning rate of 0 nothing else changes the weights."""
    model, seen = ResNet20Classifier(lr=0.0, momentum=0.9, grow_at=0.5), []
    model.net.layer2[2].register_forward_hook(lambda *_: seen.append(1))
    without, images = copy.deepcopy(model.net), torch.randn(2, 3, 32, 32)
    for name in ("layer1", "layer2", "layer3"):
        getattr(without, name)[2] = nn.Identity()
    assert torch.equal(copy.deepcopy(model.net).eval()(images), without.eval()(images)) and seen == [1]
    Trainer(max_steps=2, limit_val_batches=0, **QUIET).fit(model, CIFAR10DataModule(dataset="synthetic", batch_size=4))
    assert seen == [1, 1]
    for before, last in (stage[1:] for stage in (model.net.layer1, model.net.layer2, model.net.layer3)):
        assert all(torch.equal(*pair) for pair in zip(before.parameters(), last.parameters(), strict=True))
        assert last.bn2.weight.tolist() == [0.5] * len(last.bn2.weight)


# Its training in bfloat16 by oneDNN

needs_bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU emulates bfloat16")


@needs_bfloat16
@pytest.mark.parametrize("size", [19, 20, 32])
def test_onednns_step_is_no_less_exact_than_autocast(size: int) -> None:
    def step(dtype: torch.dtype, onednn: bool = False) -> dict[str, Tensor]:
        """Gradients and running averages by name, of one training step on eight random images."""
        torch.manual_seed(0)
        net, images = ResNet20().to(dtype), torch.randn(8, 3, size, size)
        with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
            logits = in_mkldnn(net)(images) if onednn else net(images.to(dtype))
            F.cross_entropy(logits, torch.arange(8)).backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        return gradients | {name: b for name, b in net.named_buffers() if b.is_floating_point()}

    true = step(torch.float64)

    def error(result: dict[str, Tensor]) -> float:
        assert result.keys() == true.keys() and {t.dtype for t in result.values()} == {torch.float32}
        return torch.stack([(result[name] - true[name]).norm() / true[name].norm() for name in true]).mean().item()

    # One of the two rounds here, the other there: bfloat16 has 8 bits.
    assert 0 < error(step(torch.float32, onednn=True)) < 1.25 * error(step(torch.float32)) < 0.5


@needs_bfloat16
def test_onednn_is_chosen_only_where_it_computes_what_the_network_does() -> None:
    nets = {case: ResNet20() for case in ("training", "evaluation", "hook", "frozen", "dropout")}
    nets["evaluation"].eval()
    nets["hook"].layer2.register_forward_hook(lambda *_: None)
    nets["frozen"].layer1[0].bn1.eval()
    nets["dropout"].layer2 = nn.Sequential(nets["dropout"].layer2, nn.Dropout(0.1))
    assert [case for case, net in nets.items() if can_train_in_mkldnn(net)] == ["training"]
    with torch.autograd.set_detect_anomaly(True):
        assert not can_train_in_mkldnn(nets["training"])
    with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[attr-defined]
        assert not can_train_in_mkldnn(nets["training"])


@needs_bfloat16
@pytest.mark.parametrize(("precision", "frozen"), [("bf16-mixed", False), ("bf16-mixed", True), ("32-true", False)])
def test_the_classifier_trains_by_onednn(precision: Any, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = Mock(wraps=in_mkldnn)
    monkeypatch.setattr(onednn, "in_mkldnn", converted)
    data, model = CIFAR10DataModule(dataset="synthetic", batch_size=4), ResNet20Classifier()
    model.net.bn1.train(not frozen)
    Trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, precision=precision, **QUIET).fit(model, data)
    assert converted.called == (precision == "bf16-mixed" and not frozen)


# The classifier's optimizers and metrics


def test_orthogonalized_matrices_have_singular_values_near_1() -> None:
    matrices = torch.randn(4, 16, 144, generator=torch.Generator().manual_seed(0))
    result = orthogonalized(matrices * torch.tensor([1e-3, 1.0, 10.0, 1e3])[:, None, None])
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    U, _, V = torch.linalg.svd(matrices, full_matrices=False)
    exact = U @ V  # the same singular vectors, all singular values 1
    assert F.cosine_similarity(result.flatten(1), exact.flatten(1)).min() > 0.98


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_sgd_but_for_orthogonalized_steps_on_normalized_filters(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    filters = [nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator)) for _ in range(2)]
    bias, alone = (nn.Parameter(torch.ones(5)) for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.5, "nesterov": nesterov, "weight_decay": 0.01}
    muon = Muon(filters, [bias], **settings, lr_ratio=2.0, filter_momentum=0.25)
    sgd = torch.optim.SGD([alone], **settings)
    expected = [p.detach().clone() for p in filters]
    buffers = [torch.zeros_like(p) for p in filters]
    for _ in range(3):
        for i, p in enumerate(filters):
            p.grad = torch.randn(p.shape, generator=generator)
            buffers[i] = 0.25 * buffers[i] + p.grad
            update = p.grad + 0.25 * buffers[i] if nesterov else buffers[i]
            step = orthogonalized(update.flatten(1)[None]).view_as(p)
            expected[i] = expected[i] / expected[i].norm() * 8**0.5 - 0.2 * step
        bias.grad = alone.grad = torch.randn(5, generator=generator)
        muon.step()
        sgd.step()
    for p, value in zip(filters, expected, strict=True):
        torch.testing.assert_close(p.detach(), value)
    assert torch.equal(bias, alone)


def test_muon_trains_the_convolutions_but_the_first_and_wide_ones_as_filters() -> None:
    """resnet18's 1x1 shortcuts have twice as many channels out as in: no rows of theirs could be orthogonal."""

    class Own(ResNet20Classifier):
        def make_net(self) -> nn.Module:
            return resnet18(num_classes=self.num_classes)

    for model, num in ((ResNet20Classifier(optimizer="muon"), 18), (Own(optimizer="muon", num_classes=7), 16)):
        filters, others = ([*group["params"]] for group in model.configure_optimizers().param_groups)
        assert len(filters) == num and {p.shape[2:] for p in filters} == {(3, 3)}  # two a block
        assert sorted(map(id, filters + others)) == sorted(map(id, model.parameters()))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_pretrained_begins_with_the_shipped_weights_but_the_last_layer() -> None:
    shipped, net = load_file(SHIPPED), ResNet20Classifier(num_classes=3, pretrained=True).net
    same = {name for name, values in net.state_dict().items() if torch.equal(values, shipped[name])}
    assert shipped.keys() - same == {"linear.weight", "linear.bias"} and net.linear.weight.shape == (3, 64)
    refused: list[dict[str, Any]] = [{"depth": 32, "pretrained": True}, {"depth": 21}, {"depth": 2}]
    for wrong in (*refused, {"depth": 14, "grow_at": 0.5}, {"pretrained": True, "grow_at": 0.5}):
        with pytest.raises(ValueError, match="depth is"):
            ResNet20Classifier(**wrong)


# The MLPs of the curve fit


@pytest.mark.parametrize("hidden", [(4,), (5, 7), (6, 5, 3)])
def test_gradient_of_mse_is_autograds(hidden: Sequence[int]) -> None:
    net = MLPs(hidden, seeds=[0, 1, 2]).double()
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 1, 20, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        gradient = net.gradient_of_mse(x, y)
    for _ in range(2):  # again after a step, on other weights, in the same buffers
        (expected,) = torch.autograd.grad((net(x) - y).square().mean(2).sum(), net.theta)
        with torch.no_grad():
            gradient()
            torch.testing.assert_close(net.theta.grad, expected)
            net.theta -= 0.1 * expected


def trained(seeds: Sequence[int], lrs: Sequence[float], steps: int) -> MLPs:
    """MLPs fitted to the same 50 points of a sine."""
    net = MLPs([8, 8], seeds)
    x = torch.linspace(-2, 2, 50).expand(len(seeds), 1, 50)
    with torch.no_grad():
        optimizer = ElementwiseAdam(net.theta, net.per_parameter(torch.tensor(lrs)))
        gradient = net.gradient_of_mse(x, (2 * x).sin())
        for _ in range(steps):
            gradient()
            optimizer.step()
    return net


def member(net: MLPs, m: int) -> Tensor:
    return torch.cat([parameter[m].flatten() for layer in net.layers(net.theta.detach()) for parameter in layer])


def test_a_member_starts_and_learns_as_it_would_alone() -> None:
    seeds, lrs = [3, 4, 5], [0.03, 0.01, 0.001]
    new, together = trained(seeds, lrs, 0), trained(seeds, lrs, 200)
    for m in range(3):
        assert torch.equal(member(new, m), member(trained([seeds[m]], [lrs[m]], 0), 0))
        alone = member(trained([seeds[m]], [lrs[m]], 200), 0)
        torch.testing.assert_close(member(together, m), alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lr", [1e3, 1e38])  # it runs away; it ends as nan
def test_a_diverging_member_harms_no_other(lr: float) -> None:
    tame, wild = trained([0, 1], [0.01, 0.01], 200), trained([0, 1], [0.01, lr], 200)
    assert torch.equal(member(tame, 0), member(wild, 0))
    assert not member(wild, 1).abs().max() < 100  # nor nan


def test_elementwise_adam_is_torchs_adam_with_a_rate_for_each_element() -> None:
    lrs = (0.1, 0.003)
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(theta: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        for _ in range(100):
            optimizer.zero_grad()
            (theta - torch.arange(5.0)).pow(4).sum().backward()
            optimizer.step()
        return theta.detach()

    theta = start.clone().requires_grad_()
    ours = run(theta, ElementwiseAdam(theta, torch.tensor(lrs, dtype=torch.float64)[:, None].expand(2, 5)))
    for row, lr in enumerate(lrs):
        theta = start[row].clone().requires_grad_()
        torch.testing.assert_close(ours[row], run(theta, torch.optim.Adam([theta], lr)))


# The curve fit through the Trainer


class Measurements(Callback):
    """Every validation's outputs and the weights at that time, by epoch."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Any]] = {}

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: object) -> None:
        self.at[outputs["epochs"]] = {**outputs, "theta": module.net.theta.detach().clone()}


def fit(data: CurveDataModule, seeds: Sequence[int], measure_at: Sequence[int], lrs: Sequence[float]) -> Measurements:
    measurements = Measurements()
    trainer = Trainer(max_epochs=-1, num_sanity_val_steps=0, callbacks=[measurements], **QUIET)
    trainer.fit(FunctionRegressor(lrs, seeds, measure_at, **data.scale), data)
    return measurements


def test_the_first_epochs_of_a_long_run_are_the_short_run() -> None:
    data = CurveDataModule(seeds=(0, 1))
    long = fit(data, (0, 1), [1, 10, 100, 400, 1000], [0.01, 0.001])
    short = fit(data, (0, 1), [100], [0.01, 0.001])
    assert list(long.at) == [1, 10, 100, 400, 1000] and list(short.at) == [100]
    for name, value in short.at[100].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(long.at[100][name])), name


@pytest.mark.parametrize("constant", ["0.1", "pi"])  # whose mean over many points is another float
def test_a_constant_has_no_r2(constant: str) -> None:
    assert fit(CurveDataModule(constant), (0,), [10], [0.01]).at[10]["r2"].isneginf().all()


@pytest.mark.parametrize("scale", ["1e40", "1e-40"])
def test_the_scale_of_the_function_does_not_matter(scale: str) -> None:
    def final(function: str, noise_std: float) -> dict[str, Any]:
        return fit(CurveDataModule(function, noise_std=noise_std), (0,), [200], [0.01]).at[200]

    one, other = final("x**2 + sin(x)", 3.0), final(f"{scale} * (x**2 + sin(x))", 3 * float(scale))
    for name, power in (("r2", 0), ("true_max_abs_error", 1), ("true_mse", 2)):
        assert other[name].item() == pytest.approx(one[name].item() * float(scale) ** power, rel=1e-2)


def test_errors_are_against_f_and_in_its_own_units() -> None:
    data = CurveDataModule(seeds=(0,))
    results = fit(data, (0,), [50], [0.01]).at[50]
    error = results["curve"][0] - (data.grid**2 + 2 * data.grid.sin() + (data.grid - 1).cos() - 5)
    torch.testing.assert_close(results["true_mse"][0], error.square().mean())
    torch.testing.assert_close(results["true_max_abs_error"][0], error.abs().max())
    torch.testing.assert_close(results["r2"][0], 1 - error.square().mean() / data.truth.var(correction=0))


def test_the_network_is_an_ordinary_module(tmp_path: Path) -> None:
    model = ResNet20Classifier(compile=True).eval()
    net, images = model.net, torch.randn(2, 3, 32, 32)
    expected = model(images)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.export.export(net, (images,)).module())
    for other in (*copies, torch.fx.symbolic_trace(net), torch.jit.script(net)):
        torch.testing.assert_close(other(images), expected)
    features = create_feature_extractor(net, ["layer2", "linear"])(images)
    assert features["layer2"].shape == (2, 32, 16, 16) and torch.equal(features["linear"], expected)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["net.linear.weight"], net.linear.weight)
    vector_to_parameters(parameters_to_vector(net.parameters()), net.parameters())
    assert torch.equal(net(images), expected) and all(p.view(-1).is_contiguous() for p in net.parameters())
    seen: list[Tensor] = []
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, __, output: seen.append(output))
    net(images)
    assert len(seen) == 19 and all((output < 0).any() for output in seen)  # before the ReLU behind it
