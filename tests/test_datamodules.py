"""The data of both experiments: real CIFAR-10 images where it is about images, formulas where it is about formulas."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import CIFAR10DataModule, CurveDataModule
from datamodules.augmentation import crop_and_flip, normalize, resize
from datamodules.batches import EvalBatches, TrainBatches
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
