"""The data of both experiments: real CIFAR-10 images where it is about images, marked ones where it is about order."""

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.augmentation import MEAN, STD, crop_and_flip, normalize
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.points import read_columns
from datamodules.synthetic import synthetic_images
from lit_models import ResNet20Classifier

# Order and augmentation, read off marked images: red is the row, green the column, blue the label, which is its number


def marked(num: int) -> tuple[Tensor, Tensor]:
    labels, axis = torch.arange(num), torch.arange(11)
    parts = (axis[:, None], axis[None, :], labels[:, None, None] % 251)
    return torch.stack([part.expand(num, 11, 11) for part in parts], 3).to(torch.uint8), labels


def batches(num: int = 1000, seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1, **how: Any) -> TrainBatches:
    loader = TrainBatches(*marked(num), 128, rank, world, seed=seed, **how)
    loader.set_epoch(epoch)
    return loader


def plan(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Order, shift from 0 to 8, and flip, as drawn for the marked images; the middle shows one of [1, 1] to [9, 9]."""
    images, order = whole(loader)
    pixels = (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).mul(255).round()
    red, green, blue = pixels.long().unbind(1)
    assert torch.equal(blue[:, 5, 5], order % 251)  # each image has its own label
    flip = green[:, 5, 6] < green[:, 5, 4]
    return order, torch.stack([red[:, 5, 5], green[:, 5, 5]], 1) - 1, flip


def whole(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Images and labels of all batches."""
    return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


def same(a: Iterable[tuple[Tensor, Tensor]], b: Iterable[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True))


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = list(batches(seed=3, epoch=2))
    torch.manual_seed(2)
    loader = batches(seed=3, epoch=5)
    list(loader)  # another epoch in between
    loader.set_epoch(2)
    assert same(loader, first)
    assert torch.equal(plan(first)[0].sort().values, torch.arange(1000))  # each image once
    for other in (batches(seed=3, epoch=3), batches(seed=4, epoch=2)):
        assert not any(torch.equal(mine, its) for mine, its in zip(plan(first), plan(other), strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_and_the_evaluation(world: int) -> None:
    """Whatever the number of processes, together they see the batches that one would see."""
    ranks = [list(batches(rank=rank, world=world)) for rank in range(world)]
    for number, batch in enumerate(batches()):
        for i, tensor in enumerate(batch):
            rebuilt = torch.empty_like(tensor)
            for rank in range(world):
                rebuilt[rank::world] = ranks[rank][number][i]
            assert torch.equal(rebuilt, tensor)
    ranks = [list(EvalBatches(*marked(1000), 128, rank, world)) for rank in range(world)]
    seen = [labels for rank in ranks for _, labels in rank]
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(1000))  # each once, none repeated to fill up
    assert {len(rank) for rank in ranks} == {8} and max(map(len, seen)) == math.ceil(128 / world)


def test_an_epoch_is_resumed_at_the_batch_where_it_was_saved() -> None:
    interrupted, finished = batches(epoch=4), batches(epoch=4)
    everything, left = list(finished), iter(interrupted)
    seen = [next(left) for _ in range(3)]
    resumed, ended_early, at_end = batches(), batches(), batches()
    for loader, saved in ((resumed, interrupted), (ended_early, interrupted), (at_end, finished)):
        loader.load_state_dict(saved.state_dict())
    assert same([*seen, *resumed], everything)
    for loader in (resumed, ended_early, at_end):
        loader.set_epoch(5)
        assert same(loader, batches(epoch=5))


def assert_uniform(places: Tensor, cells: int) -> None:
    """Pearson's chi-square test of equal shares.

    With k = cells - 1 degrees of freedom, Laurent and Massart (2000, lemma 1) bound both tails:
    P(chi2 >= k + 2 sqrt(k t) + 2 t) <= exp(-t) and P(chi2 <= k - 2 sqrt(k t)) <= exp(-t); t = 9.21 makes that 1e-4.
    For 81 cells: 25.7 to 152.7. If one of the 81 were never drawn, chi2 would be near 50,000 / 81 = 617.
    """
    k, t, expected = cells - 1, 9.21, len(places) / cells
    chi2 = ((places.bincount(minlength=cells) - expected).square() / expected).sum().item()
    assert k - 2 * math.sqrt(k * t) < chi2 < k + 2 * math.sqrt(k * t) + 2 * t


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    _, shift, flip = plan(batches(50_000))
    place = shift[:, 0] * 9 + shift[:, 1]
    assert_uniform(place, 81)
    assert_uniform(place * 2 + flip, 162)  # the flip is independent of the place
    assert_uniform(place[:-1:2] * 81 + place[1::2], 81 * 81)  # and an image's place of its neighbor's
    flips = []
    for epoch in range(3):
        order, shift, flip = plan(batches(20_000, epoch=epoch, max_shift=2, alternate_flips=True))
        assert_uniform((shift[:, 0] - 2) * 5 + shift[:, 1] - 2, 25)  # from 2 to 6; 4 is the image itself
        flips.append(flip[order.argsort()])
    assert_uniform(flips[0].long(), 2)
    assert torch.equal(flips[1], ~flips[0]) and torch.equal(flips[2], flips[0])


def test_batches_are_made_on_the_images_own_device() -> None:
    """On PyTorch's meta device, which like a GPU refuses to mix tensors with the CPU's, and computes nothing."""
    images, labels = (tensor.to("meta") for tensor in marked(100))
    train = TrainBatches(images, labels, 64, max_shift=2, reflect=True, alternate_flips=True, size_now=lambda: 8)
    for loader in (train, EvalBatches(images, labels, 64)):
        assert {tensor.device.type for batch in loader for tensor in batch} == {"meta"}


# CIFAR-10


@pytest.fixture(scope="module")
def cifar(cifar10_root: Path) -> CIFAR10DataModule:
    data = CIFAR10DataModule(cifar10_root, seed=7, download=False)
    data.prepare_data(), data.setup()
    return data


def test_the_official_images_labels_and_constants(cifar: CIFAR10DataModule, cifar10_root: Path) -> None:
    for (images, labels), num in ((cifar.train, 50_000), (cifar.test, 10_000)):
        assert images.shape == (num, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and labels.bincount().tolist() == [num // 10] * 10
    assert cifar.classes[3] == "cat" and cifar.test[1][0] == 3  # the first test image is a cat
    again = CIFAR10DataModule(cifar10_root, download=False)
    again.setup()
    assert again.train[0].data_ptr() == cifar.train[0].data_ptr()  # several seeds share the memory
    # The constants are mean and deviation over all pixels of the training images, to the four digits given.
    assert MEAN == (0.4914, 0.4822, 0.4465) and STD == (0.2470, 0.2435, 0.2616)
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        share = cifar.train[0][..., channel].flatten().bincount(minlength=256) / (50_000 * 32 * 32)
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt()
        assert round(mean.item(), 4) == MEAN[channel] and round(std.item(), 4) == STD[channel]


def test_the_folder_is_the_argument_or_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    assert CIFAR10DataModule().data_root == Path("data")
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    assert CIFAR10DataModule().hparams["data_root"] == str(tmp_path) and CIFAR10DataModule("a").data_root == Path("a")


def torchvision_normalized(pictures: Iterable[Image.Image]) -> Tensor:
    return torch.stack([tv.normalize(tv.to_tensor(picture), MEAN, STD) for picture in pictures])


def torchvision_augmented(image: Tensor, shift: Tensor, flip: Tensor, mode: str = "constant") -> Image.Image:
    """What RandomCrop(32, padding=4, padding_mode=mode) and RandomHorizontalFlip do, once they have drawn both."""
    top, left = shift.tolist()
    picture = tv.crop(tv.pad(Image.fromarray(image.numpy()), 4, padding_mode=mode), top, left, 32, 32)
    return tv.hflip(picture) if flip else picture


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_and_flip_is_torchvisions_for_every_shift_and_flip(cifar: CIFAR10DataModule, mode: str) -> None:
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    images, shift, flip = cifar.train[0][: len(places)], places[:, :2], places[:, 2].bool()
    pictures = [torchvision_augmented(*each, mode) for each in zip(images, shift, flip, strict=True)]
    expected = torch.stack([tv.pil_to_tensor(picture) for picture in pictures]).permute(0, 2, 3, 1)
    assert torch.equal(crop_and_flip(images, shift, flip, mode == "reflect"), expected)


def test_the_loaders_give_what_torchvisions_transforms_give(cifar: CIFAR10DataModule) -> None:
    """In a plain loop, without a Trainer: float images, normalized, the training images augmented."""
    train, (val,), test = cifar.train_dataloader(), cifar.val_dataloader(), cifar.test_dataloader()
    assert (len(train), len(val), len(test)) == (391, 79, 79)  # ceil(50,000 / 128), ceil(10,000 / 128)
    images, labels = next(iter(train))
    assert images.shape == (128, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    order, shift, flip = (drawn[:128] for drawn in plan(batches(50_000, seed=7)))
    originals = zip(cifar.train[0][order], shift, flip, strict=True)
    expected = torchvision_normalized(torchvision_augmented(*each) for each in originals)
    torch.testing.assert_close(images.contiguous(), expected, rtol=0, atol=1e-5)
    assert torch.equal(labels, cifar.train[1][order])
    for loader in (val, test):
        *_, (images, labels) = loader  # the last batch
        expected = torchvision_normalized(Image.fromarray(image.numpy()) for image in cifar.test[0][78 * 128 :])
        torch.testing.assert_close(images.contiguous(), expected, rtol=0, atol=1e-5)
        assert torch.equal(labels, cifar.test[1][78 * 128 :])


def small(**arguments: Any) -> CIFAR10DataModule:
    """Of 80 images."""
    data = CIFAR10DataModule(dataset="synthetic", batch_size=8, **arguments)
    data.train = data.test = synthetic_images(80, seed=0)
    return data


class NoisyLabels(CIFAR10DataModule):
    """A subclass that takes every tenth image, and gives it the next class, in place."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        images, labels = self.train
        labels += 1
        self.train = images[::10], labels[::10] % 10


def test_a_subclass_changes_what_setup_gives_however_often_it_is_called() -> None:
    data, plain = NoisyLabels(dataset="synthetic"), CIFAR10DataModule(dataset="synthetic")
    for stage in ("fit", "test", None):
        data.setup(stage)
        plain.setup(stage)
        images, labels = plain.train
        assert same([data.train, data.test], [(images[::10], (labels[::10] + 1) % 10), plain.test])
        assert data.test[0].data_ptr() == plain.test[0].data_ptr()  # no copy of the pixels


def test_images_grow_over_a_run() -> None:
    sizes: list[int] = []
    note = LambdaCallback(on_train_batch_end=lambda trainer, module, out, batch, i: sizes.append(batch[0].shape[2]))
    quiet: dict[str, Any] = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar")}
    short = {"max_epochs": 2, "limit_train_batches": 10, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", callbacks=[note], **short, **quiet)
    trainer.fit(ResNet20Classifier(), small(image_sizes={0.6: 24, 0.1: 20, 0.8: 32}))
    assert sizes == [32] * 2 + [20] * 10 + [24] * 4 + [32] * 4


def test_the_loaders_are_as_the_arguments_say() -> None:
    data = small(val_size=30, probe_train=True)
    held_out, subset = data.val_dataloader()
    images, labels = data.train
    assert same([whole(held_out)], [(normalize(images[50:]), labels[50:])])
    assert same([whole(subset)], [(normalize(images[:50]), labels[:50])])  # of more than 5,000 images, 5,000
    assert torch.equal(whole(data.train_dataloader())[1].bincount(), labels[:50].bincount())
    assert torch.equal(whole(data.test_dataloader())[1], labels)
    assert small(test_each_epoch=False).val_dataloader() == []
    train = small(padding_mode="reflect", max_shift=2, alternate_flips=True).train_dataloader()
    assert (train.max_shift, train.reflect, train.alternate_flips) == (2, True, True)


# Finding the files


def test_what_is_not_cifar10_is_refused(cifar10_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (cifar10_root / folder.name).iterdir():
        (folder / file.name).symlink_to(file.resolve())
    path = folder / "data_batch_2"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    with pytest.raises(MisconfigurationException, match="not in nowhere.*CIFAR10_ROOT.*--download"):
        CIFAR10DataModule("nowhere", download=False).prepare_data()
    with pytest.raises(MisconfigurationException, match="data_batch_2 is missing"):
        CIFAR10DataModule(tmp_path).setup()
    path.write_bytes(content)
    with pytest.raises(MisconfigurationException, match="data_batch_2 is missing or corrupt"):
        CIFAR10DataModule(folder).setup()  # as good as the folder that it is in


@pytest.mark.parametrize(
    ("module", "name", "values"),
    [
        (CIFAR10DataModule, "batch_size", [0]),
        (CIFAR10DataModule, "val_size", [-1, 50_000]),
        (CIFAR10DataModule, "max_shift", [5]),
        (CIFAR10DataModule, "image_sizes", [{1.0: 24}, {0.5: 64}]),
        (CIFAR10DataModule, "padding_mode", ["reflection"]),
        (CurveDataModule, "x_min", [5.0, 6.0, math.nan, -math.inf]),  # x_max is 5
        (CurveDataModule, "num_samples", [0]),
        (CurveDataModule, "noise_std", [-1.0, math.nan]),
    ],
)
def test_arguments_out_of_range(module: type, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=name):
            module(**{name: value})


# The synthetic images


def test_synthetic_images_need_no_files_and_are_repeatable(tmp_path: Path) -> None:
    data = CIFAR10DataModule(tmp_path, dataset="synthetic")
    data.prepare_data(), data.setup()
    for (images, labels), num in ((data.train, 10_000), (data.test, 2_000)):
        assert images.shape == (num, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and labels.bincount().tolist() == [num // 10] * 10
    both = torch.cat([data.train[0], data.test[0]])
    assert len({hashlib.blake2b(image.tobytes()).digest() for image in both.numpy()}) == 12_000
    torch.manual_seed(2)
    assert same([synthetic_images(2_000, seed=1)], [data.test])
    assert len(data.train_dataloader()) == 79 and len(data.classes) == 10 and not list(tmp_path.iterdir())


# The curve


def test_a_sample_has_the_moments_it_is_drawn_with() -> None:
    """Means of n numbers deviate by sigma / sqrt(n), variances by no more than sigma**2 sqrt(2 / n): five of each."""
    n = 200_000
    data = CurveDataModule("x", x_min=-5, x_max=5, num_samples=n, noise_std=3.0, seeds=(0, 1))
    for x, noise in zip(data.x, data.y - data.x, strict=True):
        assert x.dtype == torch.float64 and x.min() >= -5 and x.max() <= 5
        for values, variance in ((x, 100 / 12), (noise, 9.0)):
            assert abs(values.mean().item()) < 5 * (variance / n) ** 0.5
            assert values.var().item() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
        assert_uniform(((x + 5) * 8.1).long(), 81)
    independent = torch.cat([data.x, data.y - data.x])
    assert (torch.corrcoef(independent) - torch.eye(4)).abs().max() < 5 / n**0.5


def test_a_seeds_sample_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    many = CurveDataModule(seeds=(5, 6, 7))
    torch.manual_seed(2)
    alone = CurveDataModule(seeds=(6,))
    assert torch.equal(many.x[1], alone.x[0]) and torch.equal(many.y[1], alone.y[0])
    held_out, its = (next(iter(data.val_dataloader()))[2:] for data in (many, alone))
    assert torch.equal(held_out[0][1], its[0][0]) and torch.equal(held_out[1][1], its[1][0])
    assert not set(its[0][0].tolist()) & set(alone.x[0].tolist())  # points of its own


def test_validation_is_on_1001_even_points_without_noise() -> None:
    data = CurveDataModule(x_min=-2, x_max=3)
    x, truth, *_ = next(iter(data.val_dataloader()))
    assert x.tolist() == pytest.approx([-2 + 5 * i / 1000 for i in range(1001)])
    assert truth.tolist() == pytest.approx([v**2 + 2 * math.sin(v) + math.cos(v - 1) - 5 for v in x.tolist()])
    ((x, y),) = data.train_dataloader()  # one batch: an epoch is one step over all points
    assert torch.equal(x, data.x) and torch.equal(y, data.y)


def test_scale_brings_every_sample_to_the_labs_own() -> None:
    data = CurveDataModule("100 * x + 7", x_min=2, x_max=6)
    scale = data.scale
    assert scale["x_mean"] == pytest.approx(4) and scale["x_scale"] == pytest.approx(2 / 5)
    standard = (data.y[0] - scale["y_mean"][0]) / scale["y_scale"][0]
    assert standard.mean().item() == pytest.approx(0, abs=1e-9)
    assert standard.square().mean().item() == pytest.approx(8**2)  # 57.8 from the lab's f, 9 from its noise
    assert CurveDataModule("3", noise_std=0.0).scale["y_scale"] == [1.0]  # nothing is divided by zero


# Given points

CSV = {  # a file: its columns "x" and "y", else its first two, or what the error says
    b"1,2\n3,4": [[1, 3], [2, 4]],
    b"\xef\xbb\xbfx;y\r\n\r\n1,5; 2\r\n3e0;-,5\r\n;\r\n": [[1.5, 3], [2, -0.5]],  # Excel's, in Europe
    b"id\ty\tx\tname\n0\t2\t1\ta\n1\t4\t3\tb\n": [[1, 3], [2, 4]],
    b',"t [s]","v"\n0,"1", "2"\n1,3,4\n': [[1, 3], [2, 4]],  # pandas', with its index
    b",v\n1,2\n3,4\n": [[1, 3], [2, 4]],  # of a pandas Series
    b"# y x\n2 1.0e+00 \n 4  3.0e+00\n": [[1, 3], [2, 4]],  # NumPy's savetxt, with a header
    b"": "line 0: 0 of 2 columns; cells are separated by , ; tabs or blanks",
    b"x,y\n": "line 1: there are no numbers",
    b"t\n1\n": "line 1: 1 of 2 columns",
    b"x,y\n1,2\n\n3,\n": "line 4: could not convert string to float: ''",
    b"x,1990\n1,2\n": "line 1: could not convert string to float: 'x'",
    b"x,y\n1,nan\n": "line 2: not finite: 1, nan",
    b"x,y\n1,5,2,5\n": "line 2: 4 cells, but the first row has 2",
    b"PK\x03\x04\x9d\xa1\xff": "UTF-8",  # .xlsx
    b"x,y\n3,1\n3,2\n": "x_min 3 to x_max 3",
}


@pytest.mark.parametrize("content", CSV)
def test_a_file_of_points_is_read_or_the_line_is_named(content: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "points.csv").write_bytes(content)
    expected = CSV[content]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)) as error:
            CurveDataModule(csv=file)
        assert str(file) in str(error.value)
    else:
        assert read_columns(file, None, ["x", "y"])[1].tolist() == expected
        data = CurveDataModule(csv=file)
        assert sorted([*data.x[0].tolist(), *data.held_out_x[0].tolist()]) == expected[0]


def test_named_columns_of_a_file(tmp_path: Path) -> None:
    (file := tmp_path / "points.csv").write_text("x,y,z\n1,2,5\n3,4,6\n")
    assert read_columns(file, ["z", "x"], ["x", "y"])[1].tolist() == [[5, 6], [1, 3]]
    with pytest.raises(ValueError, match="no column w; there are: x, y, z"):
        CurveDataModule(csv=file, columns=["w", "x"])


def test_each_seed_holds_out_a_fifth_of_the_given_points() -> None:
    x = [7.0 + i for i in range(10)]
    data = CurveDataModule(x=x, y=[2 * value for value in x], seeds=(5, 6))
    assert data.x.shape == (2, 8) and data.held_out_x.shape == (2, 2) and data.truth.isnan().all()
    for xs, held_out in zip(data.x, data.held_out_x, strict=True):
        assert sorted([*xs.tolist(), *held_out.tolist()]) == x
    assert torch.equal(data.y, 2 * data.x) and torch.equal(data.held_out_y, 2 * data.held_out_x)
    assert set(data.held_out_x[0].tolist()) != set(data.held_out_x[1].tolist())
    alone = CurveDataModule(x=np.array(x), y=2 * torch.tensor(x), seeds=(6,))  # the seed alone decides
    assert torch.equal(alone.x[0], data.x[1]) and torch.equal(alone.held_out_y[0], data.held_out_y[1])
    assert (data.grid[0], data.grid[-1]) == (7, 16) and data.scale["x_mean"] == 11.5 and data.scale["x_scale"] == 0.9
    assert len(CurveDataModule(x=[1, 2], y=[3, 3]).held_out_x[0]) == 1
    assert "x" not in data.hparams and data.hparams["function"] is None
    for wrong in ({"x": x}, {"x": x, "y": x[1:]}, {"x": x, "y": [math.nan] * 10}, {"x": [x], "y": [x]}, {"columns": x}):
        with pytest.raises(ValueError, match="x and y|same shape"):
            CurveDataModule(**wrong)
    for drawn in ({"function": "x"}, {"noise_std": 1.0}, {"num_samples": 5}, {"x_max": 6.0}):
        with pytest.raises(ValueError, match=next(iter(drawn))):
            CurveDataModule(x=x, y=x, **drawn)
    with pytest.raises(ValueError, match="give csv"):
        CurveDataModule(**data.hparams)  # as load_from_checkpoint: the points are in no checkpoint
