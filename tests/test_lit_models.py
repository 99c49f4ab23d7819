"""The two networks and how they learn."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.augmentation import crop_and_flip, mean_and_scale, normalize
from lit_models import FunctionRegressor, ResNet20, ResNet20Classifier
from lit_models.adam import ElementwiseAdam
from lit_models.mlps import MLPs
from lit_models.muon import Muon, orthogonalized
from lit_models.resnet20 import cpu_has_bfloat16

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


# ResNet-20


def test_resnet20_has_the_papers_number_of_parameters() -> None:
    first = 3 * 16 * 9
    stage1 = 6 * (16 * 16 * 9)
    stage2 = 16 * 32 * 9 + 5 * (32 * 32 * 9)
    stage3 = 32 * 64 * 9 + 5 * (64 * 64 * 9)
    norms = 2 * (16 + 6 * 16 + 6 * 32 + 6 * 64)  # a scale and an offset for every channel of every convolution
    linear = 64 * 10 + 10
    assert first + stage1 + stage2 + stage3 + norms + linear == 269_722
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_722


def test_resnet20_registers_its_layers_in_the_papers_order() -> None:
    names = [n for n, m in ResNet20().named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    block = ["conv1", "bn1", "conv2", "bn2"]
    assert [n.split(".")[-1] for n in names] == ["conv1", "bn1", *block * 9, "linear"]


def test_resnet20_halves_the_picture_where_it_doubles_the_channels() -> None:
    net, shapes = ResNet20(), []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    # by the first convolution of the stage, and nowhere else
    assert [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)] == [
        "layer2.0.conv1",
        "layer3.0.conv1",
    ]


@pytest.mark.parametrize("mkldnn", [False, True])
@pytest.mark.parametrize("stage, channels", [("layer2", 16), ("layer3", 32)])
def test_shortcut_is_option_a(stage: str, channels: int, mkldnn: bool) -> None:
    if mkldnn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch is without oneDNN")
    block = getattr(ResNet20(), stage)[0]
    nn.init.zeros_(block.bn2.weight)  # silences the convolutions: what is left is the shortcut
    x = torch.rand(2, channels, 8, 8)
    out, half = block(x.to_mkldnn()).to_dense() if mkldnn else block(x), channels // 2
    assert torch.equal(out[:, half:-half], x[:, :, ::2, ::2])
    assert not out[:, :half].any() and not out[:, -half:].any()


def plain_resnet20(state: Sequence[Tensor], x: Tensor, training: bool) -> Tensor:
    """The paper's network once more, as formulas: it takes the entries of the state dict in their order."""
    left: Iterator[Tensor] = iter([t for t in state if t.dim() > 0])  # without the counters of batch norm

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
        if shrink:
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
        torch.testing.assert_close(net(x), plain_resnet20(list(net.state_dict().values()), x, training))


needs_bfloat16 = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU emulates bfloat16")


def operations(loss: Tensor) -> set[str]:
    """The names of the backward passes that lead from the loss to the parameters."""
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def autocast_step(net: ResNet20, size: int) -> dict[str, Tensor]:
    """Gradients and running averages by name, of one training step on eight random images, in bfloat16 or float64."""
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        F.cross_entropy(net(images.to(net.linear.weight.dtype)), torch.arange(8)).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return gradients | {name: b for name, b in net.named_buffers() if b.is_floating_point()}


@needs_bfloat16
@pytest.mark.parametrize("size", [19, 20, 24, 32])
def test_bfloat16_in_onednns_layout_is_no_less_exact_than_autocast(size: int) -> None:
    def seeded() -> ResNet20:
        torch.manual_seed(0)
        return ResNet20()

    hooked = seeded()
    hooked.layer1.register_forward_hook(lambda *_: None)  # so in strided tensors
    in_mkldnn, in_strides = autocast_step(seeded(), size), autocast_step(hooked, size)
    true = autocast_step(seeded().double(), size)
    assert {t.dtype for t in true.values()} == {torch.float64}

    def error(step: dict[str, Tensor]) -> float:
        assert step.keys() == true.keys()
        assert {t.dtype for t in step.values()} == {torch.float32}
        return torch.stack([(step[name] - true[name]).norm() / true[name].norm() for name in true]).mean().item()

    # One of the two rounds here, the other there: bfloat16 has 8 bits.
    assert 0 < error(in_mkldnn) < 1.25 * error(in_strides) < 0.5


@needs_bfloat16
@pytest.mark.parametrize(
    "case",
    ["training", "evaluation", "float32", "float64", "hook", "frozen", "dropout", "compiled", "anomaly", "disabled"],
)
def test_onednns_layout_is_for_training_in_bfloat16_and_gives_way_to_what_it_cannot_do(case: str) -> None:
    net = ResNet20().to(torch.float64 if case == "float64" else torch.float32)
    net.train(case != "evaluation")
    seen: list[float] = []
    if case == "hook":
        net.layer2.register_forward_hook(lambda module, args, out: seen.append(out.mean().item()))
    if case == "frozen":
        net.layer1[0].bn1.eval()
    if case == "dropout":
        net.layer2 = nn.Sequential(net.layer2, nn.Dropout(0.1))
    if case == "compiled":
        net.compile(backend="eager", fullgraph=True)
    with (
        torch.autograd.set_detect_anomaly(case == "anomaly"),
        torch.backends.mkldnn.flags(enabled=False) if case == "disabled" else nullcontext(),  # type: ignore[attr-defined]
        torch.autocast("cpu", torch.bfloat16, enabled=case != "float32"),
    ):
        images = torch.randn(2, 3, 32, 32, dtype=net.linear.weight.dtype)
        loss = F.cross_entropy(net(images), torch.tensor([0, 1]))
        assert ("ToDenseBackward0" in operations(loss)) == (case == "training")  # which leaves that layout again
        loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert len(seen) == (case == "hook")


@pytest.mark.parametrize("he_init", [True, False])
def test_initial_variance(he_init: bool) -> None:
    """He: 2 / fan_in, normal. PyTorch: uniform on +-1 / sqrt(fan_in), whose variance is 1 / (3 fan_in)."""
    torch.manual_seed(0)
    for weight in (p for p in ResNet20(he_init=he_init).parameters() if p.dim() > 1):
        fan_in = weight[0].numel()
        expected = 2 / fan_in if he_init else 1 / (3 * fan_in)
        # The variance of n normal numbers has the relative deviation sqrt(2 / n); of uniform ones less.
        assert weight.var().item() == pytest.approx(expected, rel=5 * (2 / weight.numel()) ** 0.5)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no Trainer here
def test_a_training_step_on_a_gpu_mixes_no_devices() -> None:
    """Under fake tensors PyTorch works out every result's shape and device, but computes nothing: no GPU is needed."""
    model = ResNet20Classifier(momentum=0.9)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.net.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                fake = torch.empty_strided(p.shape, p.stride(), device="cuda")
                setattr(module, name, nn.Parameter(fake))
            for name, b in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty_strided(b.shape, b.stride(), dtype=b.dtype, device="cuda"))
        model.train_metrics.to("cuda"), model.val_metrics.to("cuda")
        with pytest.raises(RuntimeError, match="same device"):  # what a mixture would do here
            torch.ones(2, device="cuda") + torch.ones(2)

        def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda")

        shift, flip, labels = empty(128, 2), empty(128, dtype=torch.bool), empty(128)
        images = normalize(crop_and_flip(empty(128, 32, 32, 3, dtype=torch.uint8), shift, flip))
        loss = model.training_step((images, labels), 0)
        assert loss.device.type == "cuda"
        for p in model.parameters():
            assert p.device.type == "cuda"
            p.grad = torch.empty_like(p)  # autograd itself wants a real device
        optimizer = model.configure_optimizers()
        optimizer.param_groups[0].update(fused=False, foreach=True)  # the fused kernel has no fake of its own
        optimizer.step()
        model.eval()
        model.validation_step((images, labels), 0)
    mean_and_scale.cache_clear()  # of fake tensors


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
        optimizer = ElementwiseAdam([net.theta], net.per_parameter(torch.tensor(lrs)))
        gradient = net.gradient_of_mse(x, (2 * x).sin())
        for _ in range(steps):
            gradient()
            optimizer.step()
    return net


def member(net: MLPs, m: int) -> list[Tensor]:
    return [parameter[m] for layer in net.layers(net.theta.detach()) for parameter in layer]


def test_a_member_starts_as_it_would_alone() -> None:
    together = trained([3, 4, 5], [0.01] * 3, steps=0)
    for m, seed in enumerate((3, 4, 5)):
        for a, b in zip(member(together, m), member(trained([seed], [0.01], steps=0), 0), strict=True):
            assert torch.equal(a, b)


def test_a_member_learns_as_it_would_alone() -> None:
    seeds, lrs = [3, 4, 5], [0.03, 0.01, 0.001]
    together = trained(seeds, lrs, steps=200)
    for m in range(3):
        for a, b in zip(member(together, m), member(trained([seeds[m]], [lrs[m]], 200), 0), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lr", [1e3, 1e38])  # it runs away; it ends as nan
def test_a_diverging_member_harms_no_other(lr: float) -> None:
    tame, wild = trained([0, 1], [0.01, 0.01], 200), trained([0, 1], [0.01, lr], 200)
    for a, b in zip(member(tame, 0), member(wild, 0), strict=True):
        assert torch.equal(a, b)
    assert not all(p.isfinite().all() and p.abs().max() < 100 for p in member(wild, 1))


def test_elementwise_adam_is_torchs_adam_with_a_rate_for_each_element() -> None:
    lrs = (0.1, 0.003)
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(5.0)

    def run(theta: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        for _ in range(100):
            optimizer.zero_grad()
            (theta - target).pow(4).sum().backward()
            optimizer.step()
        return theta.detach()

    theta = start.clone().requires_grad_()
    ours = run(theta, ElementwiseAdam([theta], torch.tensor(lrs, dtype=torch.float64)[:, None].expand(2, 5)))
    for row, lr in enumerate(lrs):
        theta = start[row].clone().requires_grad_()
        torch.testing.assert_close(ours[row], run(theta, torch.optim.Adam([theta], lr)))


# The curve fit through the Trainer


class Measurements(Callback):
    """Every validation's outputs and the weights at that time, by epoch."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, Any]] = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        self.at[outputs["epochs"]] = {**outputs, "theta": pl_module.net.theta.detach().clone()}


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


def test_it_learns_the_default_curve() -> None:
    seeds = (0, 1, 2, 3)
    results = fit(CurveDataModule(seeds=seeds), seeds, [1000], [0.01]).at[1000]
    assert results["r2"].shape == (4,) and results["r2"].min() > 0.95


@pytest.mark.parametrize("constant", ["0.1", "pi"])  # whose mean over many points is another float
def test_a_constant_has_no_r2(constant: str) -> None:
    results = fit(CurveDataModule(constant), (0,), [10], [0.01]).at[10]
    assert results["r2"].isneginf().all()


@pytest.mark.parametrize("scale", ["1e40", "1e-40"])
def test_the_scale_of_the_function_does_not_matter(scale: str) -> None:
    def final(function: str, noise_std: float) -> dict[str, Any]:
        return fit(CurveDataModule(function, noise_std=noise_std), (0,), [200], [0.01]).at[200]

    one, other = final("x**2 + sin(x)", 3.0), final(f"{scale} * (x**2 + sin(x))", 3 * float(scale))
    assert other["r2"].item() == pytest.approx(one["r2"].item(), rel=1e-3)
    assert other["true_mse"].item() == pytest.approx(one["true_mse"].item() * float(scale) ** 2, rel=1e-2)
    assert other["true_max_abs_error"].item() == pytest.approx(
        one["true_max_abs_error"].item() * float(scale), rel=1e-2
    )


def test_data_stay_on_the_cpu_since_not_every_device_has_float64() -> None:
    data, model = CurveDataModule(), FunctionRegressor()
    for batches in (data.train_dataloader(), data.val_dataloader()):
        batch = model.transfer_batch_to_device(next(iter(batches)), torch.device("meta"), 0)
        assert {part.device for part in batch} == {torch.device("cpu")}


def test_a_resumed_optimizer_has_its_learning_rates_where_its_parameters_are() -> None:
    rates = torch.tensor([0.1, 0.01])
    saved = ElementwiseAdam([torch.nn.Parameter(torch.zeros(2))], rates).state_dict()
    theta = torch.nn.Parameter(torch.zeros(2, device="meta"))
    resumed = ElementwiseAdam([theta], rates)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["element_lr"].device == theta.device


def test_errors_are_against_f_and_in_its_own_units() -> None:
    data = CurveDataModule(seeds=(0,))
    model = FunctionRegressor(seeds=(0,), measure_at=[50], **data.scale)
    measurements = Measurements()
    Trainer(max_epochs=-1, num_sanity_val_steps=0, callbacks=[measurements], **QUIET).fit(model, data)
    with torch.no_grad():
        error = model(data.grid)[0] - (data.grid**2 + 2 * data.grid.sin() + (data.grid - 1).cos() - 5)
    results = measurements.at[50]
    torch.testing.assert_close(results["true_mse"][0], error.square().mean())
    torch.testing.assert_close(results["true_max_abs_error"][0], error.abs().max())
    torch.testing.assert_close(results["r2"][0], 1 - error.square().mean() / data.truth.var(correction=0))


def test_a_loss_is_the_mean_over_images_whatever_the_size_of_the_last_batch() -> None:
    data = CIFAR10DataModule(dataset="synthetic", batch_size=1_500)  # 2,000 test images: 1,500 and 500
    model = ResNet20Classifier()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    [logged] = trainer.test(model, data, verbose=False)
    images, labels = data.test
    with torch.inference_mode():
        logits = model.eval()(normalize(images))
    assert logged["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert logged["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


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


def test_the_classifier_trains_all_its_parameters_with_either_optimizer() -> None:
    for name in ("sgd", "muon"):
        model = ResNet20Classifier(optimizer=name, momentum=0.9, nesterov=True)
        groups = model.configure_optimizers().param_groups
        assert sum(p.numel() for group in groups for p in group["params"]) == 269_722
    assert [len(group["params"]) for group in groups] == [18, 59 - 18]  # the first convolution is no filter of Muon's


def test_no_hidden_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden is empty"):
        FunctionRegressor(hidden=[])


def test_gradients_stay_in_the_memory_order_in_which_convolutions_are_fast() -> None:
    net = ResNet20().to(memory_format=torch.channels_last)
    seen: dict[str, bool] = {}

    def look(name: str, gradient: torch.Tensor) -> None:
        seen[name] = gradient.is_contiguous(memory_format=torch.channels_last)

    for name in ("layer1", "layer2"):  # before each of the shortcuts that leave out pixels
        layer = net.get_submodule(name)
        layer.register_full_backward_hook(lambda _module, _inputs, outputs, name=name: look(name, outputs[0]))
    net(torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert seen == {"layer1": True, "layer2": True}
