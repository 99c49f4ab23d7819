"""The data of both experiments: real CIFAR-10 images where it is about images, formulas where it is about formulas."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as tv
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.augmentation import crop_and_flip, normalize, resize
from datamodules.batches import EvalBatches, TrainBatches
from datamodules.expression import ExpressionError, evaluate
from datamodules.synthetic import synthetic_images

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
FOLDER = "cifar-10-batches-py"


# CIFAR-10


@pytest.fixture(scope="module")
def cifar(cifar10_root: Path) -> CIFAR10DataModule:
    return ready(CIFAR10DataModule(cifar10_root, download=False))


def ready(data: CIFAR10DataModule) -> CIFAR10DataModule:
    data.prepare_data()
    data.setup()
    return data


def digests(images: Tensor) -> list[bytes]:
    """One value an image, the same for equal images."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]


def test_images_and_labels(cifar: CIFAR10DataModule) -> None:
    for (images, labels), num in ((cifar.train, 50_000), (cifar.test, 10_000)):
        assert images.shape == (num, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and labels.bincount().tolist() == [num // 10] * 10
    assert cifar.classes[3] == "cat" and cifar.test[1][0] == 3  # the first test image is a cat


def test_batches_of_an_epoch(cifar: CIFAR10DataModule) -> None:
    train, (val,), test = cifar.train_dataloader(), cifar.val_dataloader(), cifar.test_dataloader()
    assert (len(train), len(val), len(test)) == (391, 79, 79)  # ceil(50,000 / 128), ceil(10,000 / 128)
    for loader, last in ((train, 50_000 - 390 * 128), (val, 10_000 - 78 * 128), (test, 10_000 - 78 * 128)):
        assert [len(batch[1]) for batch in loader] == [128] * (len(loader) - 1) + [last]
    images, labels = cifar.on_after_batch_transfer(next(iter(train)), 0)
    assert images.shape == (128, 3, 32, 32) and images.dtype == torch.float32
    assert labels.shape == (128,) and labels.dtype == torch.int64


def test_every_training_image_once_an_epoch(cifar: CIFAR10DataModule) -> None:
    images, labels, *_ = whole_epoch(cifar.train_dataloader())
    seen = Counter(zip(digests(images), labels.tolist(), strict=True))
    assert seen == Counter(zip(digests(cifar.train[0]), cifar.train[1].tolist(), strict=True))
    assert not torch.equal(labels, cifar.train[1])  # shuffled


def test_two_data_modules_share_the_images(cifar: CIFAR10DataModule, cifar10_root: Path) -> None:
    """So that the seeds of one command take no more memory than one."""
    again = ready(CIFAR10DataModule(cifar10_root, seed=1, download=False))
    assert again.train[0].data_ptr() == cifar.train[0].data_ptr()


def test_val_size_holds_out_the_last_images(cifar: CIFAR10DataModule, cifar10_root: Path) -> None:
    data = ready(CIFAR10DataModule(cifar10_root, val_size=5_000, download=False))
    (held_out,) = data.val_dataloader()
    assert torch.equal(torch.cat([images for images, _ in held_out]), cifar.train[0][-5_000:])
    assert torch.equal(torch.cat([labels for _, labels in held_out]), cifar.train[1][-5_000:])
    train = data.train_dataloader()
    assert len(train) == 352  # ceil(45,000 / 128)
    seen = torch.cat([images for images, *_ in train])
    assert Counter(digests(seen)) == Counter(digests(cifar.train[0][:-5_000]))
    assert torch.equal(torch.cat([images for images, _ in data.test_dataloader()]), cifar.test[0])


def test_the_constants_are_those_of_the_images(cifar: CIFAR10DataModule) -> None:
    """Mean and deviation over all pixels of the 50,000 training images, to the four digits given."""
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        share = cifar.train[0][..., channel].flatten().bincount(minlength=256) / (50_000 * 32 * 32)
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt()
        assert round(mean.item(), 4) == MEAN[channel] and round(std.item(), 4) == STD[channel]


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


def test_what_a_shift_uncovers_is_zeros_or_the_mirrored_image() -> None:
    for mode in ("zeros", "reflect"):
        data = CIFAR10DataModule(dataset="synthetic", batch_size=16, padding_mode=mode)
        data.setup()
        batch = next(iter(data.train_dataloader()))
        images, _ = data.on_after_batch_transfer(batch, 0)
        pixels, _, shift, flip = batch
        assert torch.equal(images, normalize(crop_and_flip(pixels, shift, flip, mode == "reflect")))


def test_training_images_are_what_torchvisions_transforms_give(cifar: CIFAR10DataModule) -> None:
    images, labels, shift, flip = next(iter(cifar.train_dataloader()))
    ours, kept = cifar.on_after_batch_transfer((images, labels, shift, flip), 0)
    expected = torchvision_normalized(torchvision_augmented(*each) for each in zip(images, shift, flip, strict=True))
    torch.testing.assert_close(ours.contiguous(), expected, rtol=0, atol=1e-5)
    assert torch.equal(kept, labels)


def test_test_images_are_normalized_and_nothing_else(cifar: CIFAR10DataModule) -> None:
    batches = list(cifar.test_dataloader())
    for start, batch in ((0, batches[0]), (78 * 128, batches[78])):
        ours, labels = cifar.on_after_batch_transfer(batch, 0)
        originals = cifar.test[0][start : start + 128].numpy()
        expected = torchvision_normalized(Image.fromarray(image) for image in originals)
        torch.testing.assert_close(ours.contiguous(), expected, rtol=0, atol=1e-5)
        assert torch.equal(labels, cifar.test[1][start : start + 128])


def test_resize_is_the_mean_over_the_pixels_that_a_new_one_covers(cifar: CIFAR10DataModule) -> None:
    images = cifar.train[0][:8]
    halved = resize(images, 16)
    assert halved.dtype == torch.uint8
    # A new pixel inside lies in the middle of 4 x 4 old ones, which count by a triangle two pixels wide to either side.
    blocks = images[:, 1:-1, 1:-1].float().unfold(1, 4, 2).unfold(2, 4, 2)
    weights = torch.tensor([1.0, 3, 3, 1]) / 8
    mean = (blocks * weights * weights[:, None]).sum((-1, -2))
    assert (halved[:, 1:-1, 1:-1] - mean).abs().max() <= 1.01  # rounded after the rows, and after the columns
    assert resize(images, 32) is images


def test_the_padding_is_black_before_normalization(cifar: CIFAR10DataModule) -> None:
    """torchvision pads the pixels, so the border ends at (0 - mean) / std, not at 0."""
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    corner = torch.zeros(8, 2, dtype=torch.int64)  # four rows and columns of padding at the top left
    out = normalize(crop_and_flip(cifar.train[0][:8], corner, torch.zeros(8, dtype=torch.bool)))
    border = torch.cat([out[:, :, :4].flatten(2), out[:, :, :, :4].flatten(2)], 2)
    torch.testing.assert_close(border, black[:, None].expand_as(border))
    torch.testing.assert_close(out[:, :, 4:, 4:], normalize(cifar.train[0][:8, :28, :28]))


# Order and augmentation. The labels are the numbers of the images here, and an image is one pixel.


def batches(seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1, num: int = 50_000) -> TrainBatches:
    ids = torch.arange(num)
    loader = TrainBatches((ids % 256).to(torch.uint8).view(-1, 1, 1, 1), ids, 128, seed, rank, world)
    loader.set_epoch(epoch)
    return loader


def whole_epoch(loader: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Images, labels, shifts and flips, each of all batches."""
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def same(a: Iterable[tuple[Tensor, ...]], b: Iterable[tuple[Tensor, ...]]) -> bool:
    return all(torch.equal(s, t) for x, y in zip(a, b, strict=True) for s, t in zip(x, y, strict=True))


@pytest.mark.parametrize("num", [50_000, 45_000, 1000, 128, 1])
def test_every_index_once_an_epoch(num: int) -> None:
    images, ids, shift, flip = whole_epoch(batches(num=num))
    assert torch.equal(ids.sort().values, torch.arange(num))
    assert torch.equal(images.flatten(), (ids % 256).to(torch.uint8))  # each image comes with its own label
    assert shift.shape == (num, 2) and flip.shape == (num,)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = list(batches(seed=3, epoch=2, num=1000))
    torch.manual_seed(2)
    loader = batches(seed=3, epoch=5, num=1000)
    list(loader)  # another epoch in between
    loader.set_epoch(2)
    assert same(loader, first)
    for other in (batches(seed=3, epoch=3, num=1000), batches(seed=4, epoch=2, num=1000)):
        for mine, theirs in zip(whole_epoch(first), whole_epoch(other), strict=True):
            assert not torch.equal(mine, theirs)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batches(world: int) -> None:
    """Whatever the number of processes, together they see the batches that one would see."""
    ranks = [list(batches(rank=rank, world=world, num=1000)) for rank in range(world)]
    for number, whole in enumerate(batches(num=1000)):
        for i, tensor in enumerate(whole):
            shares = [rank[number][i] for rank in ranks]
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            rebuilt = torch.empty_like(tensor)
            for rank, share in enumerate(shares):
                rebuilt[rank::world] = share
            assert torch.equal(rebuilt, tensor)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_evaluation(world: int) -> None:
    ids = torch.arange(10_000)
    ranks = [EvalBatches(ids.view(-1, 1, 1, 1), ids, 128, rank, world) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {len(list(rank)) for rank in ranks} == {len(ranks[0])}
    seen = [labels for rank in ranks for _, labels in rank]
    assert torch.equal(torch.cat(seen).sort().values, ids)  # each image once, none repeated to fill up
    assert max(map(len, seen)) <= math.ceil(128 / world)


def test_goes_on_at_the_batch_where_it_was_saved() -> None:
    whole = list(batches(seed=1, epoch=4, num=1000))
    interrupted = batches(seed=1, epoch=4, num=1000)
    left = iter(interrupted)
    seen = [next(left) for _ in range(3)]
    resumed = batches(seed=1, num=1000)
    resumed.load_state_dict(interrupted.state_dict())
    assert same([*seen, *resumed], whole)
    resumed.set_epoch(5)
    assert same(resumed, batches(seed=1, epoch=5, num=1000))  # and the next epoch is whole again


def test_saved_at_the_end_of_an_epoch_it_begins_the_next() -> None:
    finished = batches(epoch=4, num=1000)
    list(finished)
    resumed = batches(num=1000)
    resumed.load_state_dict(finished.state_dict())
    resumed.set_epoch(5)
    assert same(resumed, batches(epoch=5, num=1000))


def assert_uniform(places: Tensor, cells: int) -> None:
    """Pearson's chi-square test of equal shares.

    With k = cells - 1 degrees of freedom, Laurent and Massart (2000, lemma 1) bound both tails:
    P(chi2 >= k + 2 sqrt(k t) + 2 t) <= exp(-t) and P(chi2 <= k - 2 sqrt(k t)) <= exp(-t); t = 9.21 makes that 1e-4.
    For 81 cells: 25.7 to 152.7. If one of the 81 were never drawn, chi2 would be near 50,000 / 81 = 617.
    """
    k, t, expected = cells - 1, 9.21, len(places) / cells
    chi2 = ((places.bincount(minlength=cells) - expected).square() / expected).sum().item()
    assert k - 2 * math.sqrt(k * t) < chi2 < k + 2 * math.sqrt(k * t) + 2 * t


def test_shifts_are_uniform_on_81_places_and_flips_are_fair_and_independent() -> None:
    _, _, shift, flip = whole_epoch(batches())
    assert shift.min() == 0 and shift.max() == 8
    place = shift[:, 0] * 9 + shift[:, 1]
    assert_uniform(place, 81)
    assert_uniform(flip.long(), 2)
    assert_uniform(place * 2 + flip, 162)  # the flip is independent of the place
    assert_uniform(place[:-1:2] * 81 + place[1::2], 81 * 81)  # and an image's place of its neighbour's


def test_short_trainings_shift_less_and_mirror_each_image_in_every_second_epoch() -> None:
    flips = []
    for epoch in range(4):
        loader = batches(epoch=epoch)
        loader.max_shift, loader.alternate_flips = 2, True
        _, ids, shift, flip = whole_epoch(loader)
        assert_uniform((shift[:, 0] - 2) * 5 + shift[:, 1] - 2, 25)  # from 2 to 6; 4 is the image itself
        flips.append(flip[ids.argsort()])
    assert_uniform(flips[0].long(), 2)
    assert torch.equal(flips[1], ~flips[0]) and torch.equal(flips[2], flips[0]) and torch.equal(flips[3], flips[1])


def test_each_image_of_a_batch_has_its_own_crop() -> None:
    for _, _, shift, flip in list(batches())[:390]:
        # 128 images in 81 places leave (80 / 81)**128 = 20 % of the places empty: about 64 are taken.
        assert len(shift.unique(dim=0)) > 48 and 30 < flip.sum() < 98


# Finding the files


@pytest.fixture
def linked(cifar10_root: Path, tmp_path: Path) -> Path:
    """A data_root of our own, whose files are links to the real ones."""
    (tmp_path / FOLDER).mkdir()
    for file in (cifar10_root / FOLDER).iterdir():
        (tmp_path / FOLDER / file.name).symlink_to(file.resolve())
    return tmp_path


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_one_flipped_bit_is_found(linked: Path, name: str) -> None:
    path = linked / FOLDER / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(MisconfigurationException, match=rf"{name} is corrupt") as caught:
        CIFAR10DataModule(linked).prepare_data()
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(linked: Path) -> None:
    (linked / FOLDER / "data_batch_5").unlink()
    with pytest.raises(MisconfigurationException, match=r"data_batch_5 is missing"):
        CIFAR10DataModule(linked).prepare_data()


def test_absent_data_without_leave_to_download(tmp_path: Path) -> None:
    words = f"not in {re.escape(str(tmp_path))}.*CIFAR10_ROOT.*--download"
    with pytest.raises(MisconfigurationException, match=words) as caught:
        CIFAR10DataModule(tmp_path, download=False).prepare_data()
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"val_size": -1}, {"val_size": 50_000}])
def test_sizes_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        CIFAR10DataModule(**wrong)  # type: ignore[arg-type]


# The synthetic images


def test_synthetic_images_need_no_files(tmp_path: Path) -> None:
    data = ready(CIFAR10DataModule(tmp_path, dataset="synthetic"))
    for (images, labels), num in ((data.train, 10_000), (data.test, 2_000)):
        assert images.shape == (num, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and labels.bincount().tolist() == [num // 10] * 10
    assert len(data.train_dataloader()) == 79 and len(data.test_dataloader()) == 16
    assert len(data.classes) == 10 and not list(tmp_path.iterdir())
    assert not set(digests(data.train[0])) & set(digests(data.test[0]))


def test_synthetic_images_depend_on_their_seed_alone() -> None:
    torch.manual_seed(1)
    first, other = synthetic_images(200, seed=3), synthetic_images(200, seed=4)
    torch.manual_seed(2)
    assert same([synthetic_images(200, seed=3)], [first])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


# The curve


def test_sample_has_the_moments_it_is_drawn_with() -> None:
    """Means of n numbers deviate by sigma / sqrt(n), variances by no more than sigma**2 sqrt(2 / n): five of each."""
    n = 200_000
    data = CurveDataModule("x", x_min=-5, x_max=5, num_samples=n, noise_std=3.0, seeds=(0, 1))
    for x, noise in zip(data.x, data.y - data.x, strict=True):
        assert x.dtype == torch.float64 and x.min() >= -5 and x.max() <= 5
        for values, variance in ((x, 100 / 12), (noise, 9.0)):
            assert abs(values.mean().item()) < 5 * (variance / n) ** 0.5
            assert values.var().item() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)
        assert_uniform(((x + 5) * 8.1).long(), 81)
        assert abs(torch.corrcoef(torch.stack([x, noise]))[0, 1].item()) < 5 / n**0.5
    assert abs(torch.corrcoef(data.x)[0, 1].item()) < 5 / n**0.5
    assert abs(torch.corrcoef(data.y - data.x)[0, 1].item()) < 5 / n**0.5


def test_a_seeds_sample_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    many = CurveDataModule(seeds=(5, 6, 7))
    torch.manual_seed(2)
    alone = CurveDataModule(seeds=(6,))
    assert many.x.shape == many.y.shape == (3, 200)
    assert torch.equal(many.x[1], alone.x[0]) and torch.equal(many.y[1], alone.y[0])
    held_out = [next(iter(data.val_dataloader()))[2:] for data in (many, alone)]
    assert torch.equal(held_out[0][0][1], held_out[1][0][0]) and torch.equal(held_out[0][1][1], held_out[1][1][0])
    assert not set(held_out[1][0][0].tolist()) & set(alone.x[0].tolist())  # points of its own


def test_validation_is_on_1001_even_points_without_noise() -> None:
    data = CurveDataModule(x_min=-2, x_max=3)
    x, truth, *_ = next(iter(data.val_dataloader()))
    assert x.tolist() == pytest.approx([-2 + 5 * i / 1000 for i in range(1001)])
    assert truth.tolist() == pytest.approx([v**2 + 2 * math.sin(v) + math.cos(v - 1) - 5 for v in x.tolist()])
    ((x, y),) = data.train_dataloader()  # one batch: an epoch is one step over all points
    assert torch.equal(x, data.x) and torch.equal(y, data.y)


def test_scale_brings_every_sample_to_the_labs_own() -> None:
    data = CurveDataModule("100 * x + 7", x_min=2, x_max=6, seeds=(0, 1))
    scale = data.scale
    assert scale["x_mean"] == pytest.approx(4) and scale["x_scale"] == pytest.approx(2 / 5)
    for y, mean, std in zip(data.y, scale["y_mean"], scale["y_scale"], strict=True):
        standard = (y - mean) / std  # the lab's y has a deviation of about 8: 57.8 from f, 9 from the noise, squared
        assert standard.mean().item() == pytest.approx(0, abs=1e-9)
        assert standard.square().mean().item() == pytest.approx(8**2)
    assert CurveDataModule("3", noise_std=0.0).scale["y_scale"] == [1.0]  # nothing is divided by zero


@pytest.mark.parametrize(
    "wrong",
    [
        {"x_min": 1.0, "x_max": 1.0},
        {"x_min": 2.0, "x_max": 1.0},
        {"x_max": math.inf},
        {"x_min": math.nan},
        {"x_min": 1.0, "x_max": 1 + 1e-15},  # five numbers of float64
        {"num_samples": 0},
        {"noise_std": -1.0},
        {"noise_std": math.nan},
    ],
)
def test_settings_that_make_no_sample(wrong: dict) -> None:
    with pytest.raises(ValueError) as caught:
        CurveDataModule(**wrong)
    assert "\n" not in str(caught.value)


# The language of f(x)

GOOD: dict[str, Callable[[float], float]] = {
    "x": lambda x: x,
    " x \n": lambda x: x,
    "3": lambda x: 3,
    "1_000.5e-1 * x": lambda x: 100.05 * x,
    "pi + e": lambda x: math.pi + math.e,
    "1 + 2 * x - 3 / 4": lambda x: 1 + 2 * x - 0.75,
    "-x**2": lambda x: -(x**2),
    "(-x)**2": lambda x: x**2,
    "2**-x": lambda x: 2**-x,
    "2**3**2": lambda x: 512,
    "+x - -x": lambda x: 2 * x,
    "x**2 + 2*sin(x) + cos(x-1) - 5": lambda x: x**2 + 2 * math.sin(x) + math.cos(x - 1) - 5,
    "(x+1)**2 + sin(x**2+1) - log(x**2+1)": lambda x: (x + 1) ** 2 + math.sin(x**2 + 1) - math.log(x**2 + 1),
    **{f"{name}(x)": getattr(math, name) for name in "sin cos tan asin acos atan sinh cosh tanh exp".split()},
    "log(x + 2)": lambda x: math.log(x + 2),
    "log2(x + 2)": lambda x: math.log2(x + 2),
    "log10(x + 2)": lambda x: math.log10(x + 2),
    "sqrt(x + 2)": lambda x: math.sqrt(x + 2),
    "abs(x)": abs,
    "sign(x)": lambda x: (x > 0) - (x < 0),
    "floor(3*x)": lambda x: math.floor(3 * x),
    "ceil(3*x)": lambda x: math.ceil(3 * x),
    "x" + "+x-x" * 225: lambda x: x,
    "minimum(x, 0.5)": lambda x: min(x, 0.5),
    "maximum(x, -x)": abs,
    "min(x, 0.5, -x)": lambda x: min(x, 0.5, -x),
    "max(x, -x, 0.1)": lambda x: max(x, -x, 0.1),
    "π + .5 - 5.": lambda x: math.pi - 4.5,
    "7 % 3 + -x // 0.25": lambda x: 1 + -x // 0.25,
    "relu(x) + sigmoid(x)": lambda x: max(x, 0) + 1 / (1 + math.exp(-x)),
    "sinc(x)": lambda x: math.sin(math.pi * x) / (math.pi * x) if x else 1,
    "heaviside(x)": lambda x: (x > 0) + 0.5 * (x == 0),
    "heaviside(x, 1)": lambda x: x >= 0,
    "x > 0": lambda x: x > 0,
    "2*(x > 0) - (x < 0)": lambda x: 2 * (x > 0) - (x < 0),
    "-0.5 < x < 0.5": lambda x: -0.5 < x < 0.5,
    "x < -0.5 or not x <= 0 and x != 1": lambda x: x < -0.5 or x > 0 and x != 1,
    "x if x > 0 else -x if x > -0.5 else 2": lambda x: x if x > 0 else -x if x > -0.5 else 2,
    "where(x >= 0, x**0.5, 0)": lambda x: x**0.5 if x >= 0 else 0,
    "log(x) if x > 0 else 0": lambda x: math.log(x) if x > 0 else 0,
    "1/x if x != 0 else 0": lambda x: 1 / x if x else 0,
    "sin(x)/x if x != 0 else 1": lambda x: math.sin(x) / x if x else 1,
}


@pytest.mark.parametrize("function", GOOD)
def test_means_what_python_means(function: str) -> None:
    x = torch.linspace(-1, 1, 21, dtype=torch.float64).view(3, 7)
    y = evaluate(function, x)
    assert y.shape == x.shape and y.dtype == torch.float64
    assert y.flatten().tolist() == pytest.approx([float(GOOD[function](v)) for v in x.flatten().tolist()], abs=1e-12)


@pytest.mark.parametrize(
    "function, x_min, x_max",
    [
        ("3", -5, 5),
        ("0", -5, 5),
        ("abs(x)", -5, 5),
        ("floor(x)", -5, 5),
        ("1/x", 1, 5),
        ("1/x", 1e-3, 5),
        ("x**0.5", 0, 5),
        ("exp(20*x)", -5, 5),  # up to 2.7e43
        ("sin(50*x)", -5, 5),
        ("x", 1, 1 + 1e-12),
        ("x", 0, 1e-300),
        ("x", -1e100, 1e100),
        ("sin(x)", -1e100, 1e100),
        ("1/(x**2 + 1e-9)", -1, 2),  # a peak of a billion, but finite
        ("𝑥", -5, 5),  # to Python the letter x
        ("sign(x) + heaviside(x) + (x > 1)", -5, 5),  # steps
        ("x if x > 0 else floor(x)", -5, 5),
        ("log(x) if x > 0 else 0", -5, 5),
        ("sin(x)/x if x != 0 else 1", -5, 5),
    ],
)
def test_functions_that_are_hard_but_usable(function: str, x_min: float, x_max: float) -> None:
    data = CurveDataModule(function, x_min, x_max, noise_std=0.0)
    scale = [torch.tensor(value, dtype=torch.float64) for value in data.scale.values()]
    assert all(tensor.isfinite().all() for tensor in (data.x, data.y, data.grid, data.truth, *scale))


@pytest.mark.parametrize(
    "function, x_min, x_max, where",
    [
        ("1/x", -5, 5, "0"),
        ("1/x", 0, 5, "0"),
        ("1/x", -1, 2, "0"),  # 0 is on no grid
        ("log(x)", 0, 5, "0"),
        ("x/abs(x)", -5, 5, "0"),  # has no limit there
        ("sin(1/x)", -5, 5, "0"),
        ("log(abs(x))", -5, 5, "0"),
        ("1/(x - 0.3)", -5, 5, "0.3"),
    ],
)
def test_says_where_f_is_not_finite(function: str, x_min: float, x_max: float, where: str) -> None:
    with pytest.raises(ExpressionError, match=f"not finite at x = {where}: ") as caught:
        CurveDataModule(function, x_min, x_max)
    assert function in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("function", ["sin(10*pi*x)", "sin(20*pi*x)", "cos(5*pi*x + pi/2)", "tan(sin(10*pi*x))"])
def test_a_fast_curve_that_is_0_at_round_places_has_no_pole(function: str) -> None:
    CurveDataModule(function, 0, 1000)


@pytest.mark.parametrize(
    "function, where", [("tan(x)", "1.5708"), ("1/(x - 0.123456)", "0.123456"), ("1/x if x != 0 else 0", "0")]
)
def test_a_pole_whose_point_is_no_float_or_left_out(function: str, where: str) -> None:
    with pytest.raises(ExpressionError, match=f"grows without bound near x = {where}: choose an interval"):
        CurveDataModule(function, -1, 2)


@pytest.mark.parametrize(
    "function, where",
    [
        ("x**0.5", "-5 and 0"),
        ("x/0", "-5 and 5"),
        ("9**9**9", "-5 and 5"),
        ("1e400", "-5 and 5"),
        ("exp(1000*x)", "0.71 and 5"),  # exp(709.8) is the largest
        ("log(-x)", "0 and 5"),
        ("asin(x)", "-5 and -1.00"),
        ("sqrt(x**2-1)", "-1 and 1"),
        ("log(x-1)", "-5 and 1"),
    ],
)
def test_names_where_f_is_not_defined(function: str, where: str) -> None:
    with pytest.raises(ExpressionError, match=f"not finite between x = {where}.*: choose an interval outside it"):
        CurveDataModule(function)


@pytest.mark.parametrize(
    "function, x_min, where, limit, better",
    [
        ("sin(x)/x", -5, "0", "1", "sin(x)/x if x != 0 else 1"),
        ("sin(x)/x", 0, "0", "1", "sin(x)/x if x != 0 else 1"),  # the limit from one side
        ("x*log(x)", 0, "0", "0", "x*log(x) if x != 0 else 0"),
        ("x*log(abs(x))", -5, "0", "0", "x*log(abs(x)) if x != 0 else 0"),
        ("(1-cos(x))/x**2", -5, "0", "0.5", "(1-cos(x))/x**2 if x != 0 else 0.5"),
        ("(x**2-1)/(x-1)", -5, "1", "2", "(x**2-1)/(x-1) if x != 1 else 2"),
        ("x/x if x > -1 else 3", -5, "0", "1", "(x/x if x > -1 else 3) if x != 0 else 1"),
        ("x*(x-1)/x/(x-1)", -5, "0", "1", None),  # and is not finite at 1 either
    ],
)
def test_names_the_limit_where_f_has_one(function: str, x_min: float, where: str, limit: str, better: str) -> None:
    with pytest.raises(ExpressionError, match=f"not finite at x = {where}, where its limit is {limit}: ") as caught:
        CurveDataModule(function, x_min)
    assert (f"write {better!r}, or" in str(caught.value)) == (better is not None)
    if better:
        CurveDataModule(better, x_min)


@pytest.mark.parametrize(
    "function, better",
    [
        ("x^2", "x**2"),
        ("2^x^2 - -x^2", "2**x**2 - -x**2"),
        ("2x+1", "2*x+1"),
        ("2 sin(x)", "2*sin(x)"),
        ("2(x+1)", "2*(x+1)"),
        ("(x+1)(x-1)", "(x+1)*(x-1)"),
        ("x(x+1)", "x*(x+1)"),
        ("1e3x + log2(x) + 2e", "1e3*x + log2(x) + 2*e"),
        ("sin(2x)cos(3x)", "sin(2*x)*cos(3*x)"),
        ("IF(x>0, 1, if(x<-1, 2, x))", "where(x>0, 1, where(x<-1, 2, x))"),
        ("x^2 e^-x", "x**2*e**-x"),
        ("e^x sin(x)", "e**x*sin(x)"),
        ("2pix", "2*pi*x"),
        ("xsin2x", "x*sin(2*x)"),
        ("f = @(x) x.^2", "x**2"),
        ("x² − 2·x × 3 ÷ 4 – 5", "x**2 - 2*x * 3 / 4 - 5"),
        ("x³ + x⁻¹ + eˣ", "x**3 + x**-1 + e**x"),
        ("½x", "(1/2)*x"),
        ("√x + 2√(x+1)", "sqrt(x) + 2*sqrt(x+1)"),
        ("２＊ｘ＋１", "2*x+1"),
        ("x ≤ 1", "x <= 1"),
        ("“x**2”", "x**2"),
        ("'x**2'", "x**2"),
        ("x**2;", "x**2"),
        ("np.sin(x) + numpy.pi", "sin(x) + pi"),
        ("torch.nn.functional.relu(x)", "relu(x)"),
        ("tf.math.sin(x)", "sin(x)"),
        ("lambda x: x**2", "x**2"),
        ("f = lambda t: t^2", "x**2"),
        ("def f(x):\n    return 2x", "2*x"),
        ("f(x) = x**2", "x**2"),
        ("y = 2x", "2*x"),
        ("x ↦ x²", "x**2"),
        ("ln(x) + arctan(x)", "log(x) + atan(x)"),
        ("tg(x)", "tan(x)"),
        ("2/ctg(x)", "2 / (1 / tan(x))"),
        ("-pow(x, 2)", "-x**2"),
        ("pow(-x, 2)", "(-x)**2"),
        ("round(x)", "floor(x + 0.5)"),
        ("log(x, 2)", "log(x) / log(2)"),
        ("np.clip(x, 0, 1)", "min(max(x, 0), 1)"),
        ("x.abs()", "abs(x)"),
        ("|x| + |sin(x)|", "abs(x) + abs(sin(x))"),
        ("2||x|-1|", "2*abs(abs(x)-1)"),
        ("ln|x|", "log(abs(x))"),
        ("0,5*x + 1,5e3", "0.5*x + 1.5e3"),
        ("sin(0,5x)", "sin(0.5*x)"),
        ("sin x", "sin(x)"),
        ("sin 2x cos x + 1", "sin(2*x)*cos(x) + 1"),
        ("sin^2(x) + cos²x", "sin(x)**2 + cos(x)**2"),
        ("sin⁻¹(x) + sin^2(x) x", "asin(x) + sin(x)**2 * x"),
        ("X", "x"),
        ("Sin(X)", "sin(x)"),
        ("t**2 + 2t", "x**2 + 2*x"),
        (r"\sin(x) + 2\cdot\pi x", "sin(x) + 2*pi*x"),
        (r"\frac{1}{x^{2}+1}", "(1/(x**2+1))"),
        ("2*[x+1]", "2*(x+1)"),
        ("{x}", "x"),
        ("Sin[x]", "sin(x)"),
        ("x > 0 ? x : 0", "x if x > 0 else 0"),
        ("x if x = 0 else 1", "x if x == 0 else 1"),
        ("(x<-1) | (x>1) || x==0", "(x<-1) or (x>1) or x==0"),
        ("(x>0) & (x<1)", "(x>0) and (x<1)"),
        ("ln(x**2+1,5) + step(x-0,5)", "log(x**2+1.5) + heaviside(x-0.5)"),
        ("=IF(x>0,5;1,5;MAX(x;0))", "where(x>0.5, 1.5, max(x, 0))"),
        ("x => x^2", "x**2"),
        ("(t) => t^2", "x**2"),
        ("where(!(x>0), 1, 2)", "where(not (x>0), 1, 2)"),
        ("where(x ~= 0, x, 1)", "where(x != 0, x, 1)"),
        ("PI()*x", "pi*x"),
        ("xe^-x", "x*e**-x"),
        (r"\log_{2}(x+6) + log_10(x+6)", "log2(x+6) + log10(x+6)"),
        (r"\(\max\{0, \lvert x \rvert\}\)", "(max(0, abs(x)))"),
        (r"\mathrm{e}^{x}", "e**x"),
        ("⌊x⌋ + ⌈2x⌉", "floor(x) + ceil(2*x)"),
        ("x\u200b+1", "x+1"),
        ("scipy.special.expit(x)", "sigmoid(x)"),
    ],
)
def test_shows_how_to_write_what_has_one_meaning(function: str, better: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        CurveDataModule(function)
    assert str(caught.value).endswith(f"cannot be used as it is written: write {better!r}")
    evaluate(better, torch.ones(()))


@pytest.mark.parametrize(
    "function, what",
    [
        ("1/2x", "in two ways"),
        ("x/2 sin(x)", "in two ways"),
        ("1/x^2(x+1)", "in two ways"),
        ("e^2x", "in two ways"),
        ("x^-2x", "in two ways"),
        ("log(8,2)*x", "comma in 8,2: write 8.2, or a blank before a base"),
        ("arcsinh(x)", "'arcsinh' is unknown: the functions are"),
        ("1,000*x", "comma in 1,000: a decimal point is '.'"),
        ("log(2, 5)x, 1", "comma outside"),
        ("sin x^2", "argument of sin in parentheses"),
        ("sin 2*x", "argument of sin in parentheses"),
        ("sin", "argument of sin in parentheses, as in sin.x."),
        ("sin^2(x)^2", "behind its argument"),
        ("2½", "from '½' on"),
        ("2 .5", "from '.5' on"),
        ("1 000*x", "from '000[*]x' on"),
        ("x2", "'x2' is unknown: the variable is x"),
        ("atan2(x, 1)", "atan2 is unknown"),
        ("np.clip(x, -0,5, 0,5)", "'clip' is unknown"),
        ("x + t", "'t' is unknown: the variable is x"),
        ("e(x)", "e is a number, not a function"),
        ("x[0]", "more than arithmetic"),
        ("[1, 2]", "more than arithmetic"),
        ("x =>0", "cannot be read from"),
        ("x if x > 0", "an 'if' needs an 'else'"),
        ("sin(x", "'[(]' of '[(]x' has no '[)]'"),
        ("2*(x+1))", "'[)]' after '2[*][(]x[+]1[)]' has no '[(]'"),
        ("  ", "it is empty"),
        ("flor(x)", "did you mean floor"),
        ("exp(100*x)", "exceeds 1e150"),
        ("x**2 * 1e200", "exceeds 1e150"),
        ("foo(x, y)", "'y' is unknown"),
        ("g(x)", "'g' is unknown: the functions are sin cos"),
        ("sin(x, x)", "takes 1 argument, not 2"),
        ("minimum(x)", "takes 2 or more arguments, not 1"),
        ("heaviside()", "takes 1 or 2 arguments, not 0"),
        ("x +", "something is missing at its end"),
        ("x; x", "from '; x' on"),
        ("x\nx", "cannot be read from"),
        ("x = 1", "from '= 1' on"),
        ("\0", "cannot be used"),
        ("\ud800", "characters that are no text"),
        ("\N{SMILING FACE WITH SUNGLASSES}", "cannot be read from"),
        ("x+" * 50_000 + "x", "100001 characters"),
        ("(" * 100_000, "100000 characters"),
        ("(" * 490 + "x" + ")" * 490, "nested too deeply|cannot be read"),
        ("9" * 900, "too large"),
        ("True", "not a number"),
        ("None", "not a number"),
        ("1j * x", "'j' is unknown"),
        ("b'x'", "not a number"),
        ("__import__('os').system('true')", "cannot be used"),
        ("eval('1')", "'eval' is unknown|not a number"),
        ("x.__class__", "more than arithmetic"),
        ("x.real", "more than arithmetic"),
        ("sin.__globals__", "in parentheses"),
        ("().__class__.__base__.__subclasses__()", "cannot be used"),
        ("(lambda: x)()", "more than arithmetic"),
        ("[x for x in (1, 2)]", "more than arithmetic"),
        ("{x: x}", "more than arithmetic"),
        ("(x, x)", "comma outside"),
        ("(x := 1)", "more than arithmetic"),
        ("f'{x}'", "more than arithmetic"),
        ("sin(*x)", "more than arithmetic"),
        ("sin(input=x)", "more than arithmetic"),
        ("sin(cos)", "in parentheses"),
        ("x if x else 1", "a condition is a comparison"),
        ("x and 1", "a condition is a comparison"),
        ("where(x, 1, 0)", "a condition is a comparison"),
        ("x in x", "more than arithmetic"),
        ("~x", "more than arithmetic"),
        ("x @ x", "more than arithmetic"),
        ("1 << 9**9", "more than arithmetic"),
    ],
)
def test_refuses_in_one_line_what_is_not_in_the_language(function: str, what: str) -> None:
    with pytest.raises(ExpressionError, match=what) as caught:
        CurveDataModule(function)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


WORDS = "x pi e 0 1 2 0.5 1e9 + - * / ** ( ) , . sin( log( minimum( abs foo _ ' [ ] { } : = lambda for in \n \\".split(
    " "
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=20).map("".join))
@example("x" * 100_000)
@example("-" * 1000)
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_text_is_a_function_or_an_expression_error(text: str) -> None:
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    try:
        y = evaluate(text, x)
    except ExpressionError as error:
        assert "\n" not in str(error)
    else:
        assert y.shape == x.shape and y.dtype == torch.float64
