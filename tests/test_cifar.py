"""scripts/cifar.py as its user meets it: the command line, its output, and the run outputs."""

import csv
import shutil
import sys
from pathlib import Path

import pytest
from launch import assert_refused, command, run_anew, succeed
from short_runs import CIFAR, assert_same_run, callback, checkpoint, files, summary

TRAINER_FLAGS = "accelerator devices strategy precision max_epochs limit_train_batches".split()
COMMON_FLAGS = "config print_config seed run_dir ckpt_path save_every_n_steps".split()
FIT_FLAGS = "function x_min x_max num_samples noise_std csv columns epochs lr num_seeds hidden".split()
CIFAR_FLAGS = "recipe data data_root download val_size num_seeds probe_train batch_size compile milestones".split()
CIFAR_FLAGS += "lr momentum nesterov weight_decay he_init warmup_fraction image_sizes max_shift alternate_flips".split()


def whole_images(accuracy: float, images: int) -> bool:
    """Whether it is the accuracy of so many images, each counted once."""
    return abs(accuracy * images - round(accuracy * images)) < 1e-3


def test_a_run_has_the_outputs_that_the_design_names(whole: Path, tmp_path: Path) -> None:
    """The whole run, resumed to be tested on 8 images."""
    run_dir = shutil.copytree(whole, tmp_path / "run")
    resume = ("--run_dir", "run", "--ckpt_path", "last", "--limit_test_batches", "2")
    output, content = succeed(tmp_path, *CIFAR, *resume).stdout, summary(run_dir)
    assert set(content) >= {
        *("recipe", "data", "device", "parameters", "train_batches", "val_batches", "epochs"),
        *("test_acc", "test_loss", "images_per_second", "seconds", "peak_memory_mb"),
    }
    assert (content["recipe"], content["data"], content["device"]) == ("lab", "synthetic", "cpu")
    assert (content["parameters"], content["train_batches"], content["val_batches"]) == (269_722, 6, 2)
    assert content["test_loss"] > 0 and whole_images(content["test_acc"], 8)
    assert content["images_per_second"] > 0 and content["peak_memory_mb"] > 0
    assert content["seconds"]["total"] > content["seconds"]["train"] > 0
    assert [row["epoch"] for row in content["epochs"]] == [0, 1, 2]
    assert [row["lr"] for row in content["epochs"]] == [0.1, 0.1, 0.01]
    columns = "epoch lr train_loss train_acc val_loss val_acc seconds images_per_second".split()
    for row in content["epochs"]:
        assert set(row) == {*columns}
        assert row["train_loss"] > 0 and row["val_loss"] > 0 and row["seconds"] > 0
        assert whole_images(row["train_acc"], 24) and whole_images(row["val_acc"], 8)

    # The run outputs and the last lines.
    for name in ("config.yaml", "summary.json", "checkpoints/last.ckpt"):
        assert (run_dir / name).stat().st_size > 0
    for name in ("training", "confusion", "confident_errors"):
        picture = (run_dir / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 5_000
    assert list(run_dir.glob("events.out.tfevents.*")) and not list(run_dir.rglob("*.tmp"))
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx([0.1, 0.1, 0.01])
    for name in (f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("loss", "acc")):
        assert sum(bool(row[name]) for row in rows) == (1 if name.startswith("test") else 3)
    result, where = output.splitlines()[-2:]
    assert f"test accuracy {content['test_acc']:.2%}" in result
    assert where == "Figures and summary.json are in run; TensorBoard: tensorboard --logdir run"


def test_config_repeats_the_run_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    output = succeed(tmp_path, "cifar.py", "--config", str(whole / "config.yaml"), "--run_dir", "again").stdout
    assert_same_run(tmp_path / "again", whole)
    header, *rows = (line.split() for line in output.splitlines()[1:5])
    assert header == "epoch lr train_loss train_acc val_loss val_acc seconds".split()
    assert [row[:2] for row in rows] == [["0", "0.1"], ["1", "0.1"], ["2", "0.01"]]


def test_a_branch_shows_what_happens_without_the_drop(whole: Path, tmp_path: Path) -> None:
    """Another run that begins with the checkpoint from before the drop, by a bare file name."""
    shutil.copy(whole / "checkpoints" / "end_of_epoch1.ckpt", tmp_path / "foo.ckpt")
    succeed(tmp_path, *CIFAR, "--milestones", "{}", "--ckpt_path", "foo.ckpt", "--run_dir", "branch")
    content, before = summary(tmp_path / "branch"), summary(whole)
    assert [row["lr"] for row in content["epochs"]] == [0.1, 0.1, 0.1]
    assert content["epochs"][:2] == before["epochs"][:2]
    assert content["epochs"][2]["val_loss"] != before["epochs"][2]["val_loss"]
    assert before["origin"] is None and content["origin"] == {"settings": before["settings"], "epochs": 2}


def test_each_seed_is_an_ordinary_run_and_finished_ones_are_not_trained_again(tmp_path: Path) -> None:
    """Interrupted in the second seed, and resumed; with the training subset measured, and a validation split."""
    flags = "--max_epochs 1 --limit_test_batches 2 --num_seeds 2 --probe_train true --val_size 16 --run_dir top".split()
    interrupt = callback(
        tmp_path, "on_train_batch_start", "trainer.global_step or Path('top/seed1').exists() and signal.raise_signal(2)"
    )
    done = command(tmp_path, *CIFAR, *flags, interrupt)
    assert done.returncode == 130 and done.stdout.endswith(" --run_dir top --ckpt_path last\n"), done.stderr
    assert not (tmp_path / "top" / "summary.json").exists()
    first = [summary(tmp_path / "top" / "seed0")[name] for name in ("epochs", "test_acc", "test_loss")]
    callback(tmp_path, "on_train_batch_start", "pass")
    succeed(tmp_path, *CIFAR, *flags, interrupt, "--ckpt_path", "last")
    assert [summary(tmp_path / "top" / "seed0")[name] for name in ("epochs", "test_acc", "test_loss")] == first
    top, runs = summary(tmp_path / "top"), [summary(tmp_path / "top" / f"seed{seed}") for seed in (0, 1)]
    for name in ("test_acc", "test_loss"):
        values = [run[name] for run in runs]
        assert [run[name] for run in top["runs"]] == values
        assert top[f"{name}_mean"] == pytest.approx(sum(values) / 2)
        assert top[f"{name}_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # one degree of freedom
    assert runs[0]["test_loss"] != runs[1]["test_loss"]
    for run in runs:
        (epoch,) = run["epochs"]
        assert (run["measured_on"], run["val_batches"]) == ("validation", 2) and whole_images(epoch["val_acc"], 8)
        assert 0 <= epoch["probe_acc"] <= 1 and epoch["probe_loss"] > 0
    assert (tmp_path / "top" / "training.png").exists()
    for others in (("--seed", "2"), ("--seed", "2", "--ckpt_path", "last")):
        assert_refused(command(tmp_path, *CIFAR, *flags, *others), "top holds a run already")


def test_the_papers_recipe_and_an_end_inside_an_epoch(tmp_path: Path) -> None:
    """The third step ends training in the second epoch, whose weights are measured all the same; then it is resumed."""
    paper = [flag for flag in CIFAR if flag not in ("--max_epochs", "3")]
    few = "--recipe paper --limit_train_batches 2 --limit_val_batches 0.1 --run_dir run --max_steps".split()
    succeed(tmp_path, *paper, *few, "3")
    (group,) = checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
    assert checkpoint(tmp_path / "run")["hyper_parameters"]["he_init"] is True
    content = summary(tmp_path / "run")
    assert (content["train_batches"], content["val_batches"]) == (2, 50)  # a tenth of the test split's 500
    first, second = content["epochs"]
    assert (first["lr"], second["lr"]) == (0.1, 0.01)  # the milestone 2 counts steps
    assert all(row[name] is not None for row in (first, second) for name in ("train_acc", "val_acc", "val_loss"))
    assert first["val_loss"] != second["val_loss"]
    assert "ended inside an epoch" in succeed(tmp_path, *paper, *few, "5", "--ckpt_path", "last").stdout
    assert [row["epoch"] for row in summary(tmp_path / "run")["epochs"]] == [0, 1, 2]


def test_the_fast_recipe(tmp_path: Path) -> None:
    """Five epochs of four steps; a cycle of another length is refused, and harms nothing."""
    flags = "--recipe fast --data synthetic --accelerator cpu --batch_size 8 --max_epochs 5".split()
    flags += "--limit_train_batches 4 --limit_test_batches 1 --run_dir run".split()
    output, config = succeed(tmp_path, "cifar.py", *flags).stdout, (tmp_path / "run" / "config.yaml").read_text()
    assert "Precision 32-true: " in output and "\nprecision: 32-true\n" in config and "\ncompile: false\n" in config
    content = summary(tmp_path / "run")
    assert [row["val_acc"] for row in content["epochs"]] == [None] * 5, "the test split is measured once"
    assert output.count("measured at the end only. For a curve: --test_each_epoch true or --val_size N") == 1
    assert whole_images(content["test_acc"], 8)
    done = [(4 * epoch + 3.5) / 20 for epoch in range(5)]  # the middle of an epoch's last step
    rates = [row["lr"] for row in content["epochs"]]
    assert rates == pytest.approx([0.2 * min(d / 0.2, (1 - d) / (1 - 0.2)) for d in done])
    filters, others = checkpoint(tmp_path / "run")["optimizer_states"][0]["param_groups"]
    ratio = 0.48  # from 0.5 at 4 epochs to 0.15 at 200, over the logarithm: 0.5 - 0.35 * log(5 / 4) / log(200 / 4)
    assert (filters["lr_ratio"], filters["momentum"]) == (ratio, 0.6)
    assert (others["momentum"], others["nesterov"]) == (0.9, True)
    before = files(tmp_path)
    longer = command(tmp_path, "cifar.py", *flags, "--max_epochs", "6", "--ckpt_path", "last")
    assert_refused(longer, "--max_epochs 5, not 6")
    assert files(tmp_path).items() >= before.items()


def test_a_batch_to_overfit_is_the_same_in_every_epoch(tmp_path: Path) -> None:
    """Of two epochs the second alone is validated."""
    flags = "--max_epochs 2 --overfit_batches 1 --check_val_every_n_epoch 2".split()
    labels = callback(tmp_path, "on_train_batch_end", "print('labels', *args[1][1].tolist())")
    output = succeed(tmp_path, *CIFAR, *flags, labels, "--run_dir", "run").stdout
    batches = [line for line in output.splitlines() if line.startswith("labels")]
    assert len(batches) == 2 and batches[0] == batches[1]
    first, second = summary(tmp_path / "run")["epochs"]
    assert first["val_acc"] is None and second["val_acc"] is not None


@pytest.mark.slow
def test_a_compiled_run(whole: Path, tmp_path: Path) -> None:
    succeed(tmp_path, *CIFAR, "--compile", "true", "--run_dir", "run")
    losses = [summary(path)["epochs"][0]["train_loss"] for path in (tmp_path / "run", whole)]
    assert losses[0] != losses[1]  # other roundings, which early training makes larger
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_two_processes_make_one_run_and_count_each_image_once(tmp_path: Path) -> None:
    flags = "--data synthetic --accelerator cpu --batch_size 32 --max_epochs 2 --limit_train_batches 12".split()
    flags += "--val_size 1001 --limit_val_batches 8 --milestones null --limit_test_batches 1".split()
    succeed(tmp_path, "cifar.py", *flags, "--run_dir", "one")
    succeed(tmp_path, "cifar.py", *flags, "--devices", "2", "--strategy", "ddp")
    (run_dir,) = (tmp_path / "runs" / "cifar").iterdir()
    one, two = summary(tmp_path / "one"), summary(run_dir)
    losses = [[epoch["train_loss"] for epoch in content["epochs"]] for content in (one, two)]
    # Not equal: each process normalizes by the mean and deviation of its own half of a batch.
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert whole_images(two["test_acc"], 32) and whole_images(two["epochs"][0]["train_acc"], 384)


def test_real_images(tmp_path: Path, cifar10_root: Path) -> None:
    data = ("--data", "cifar10", "--data_root", str(cifar10_root.resolve()), "--download", "false")
    succeed(tmp_path, *CIFAR, *data, "--max_epochs", "1", "--run_dir", "real")
    content = summary(tmp_path / "real")
    assert content["data"] == "cifar10" and whole_images(content["epochs"][0]["train_acc"], 24)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--nonsense 3", "--nonsense 3\n"),
        ("--epochs 3", "--epochs 3 (did you mean --max_epochs or --min_epochs?)\n"),
        ("--recipe nonsense", "recipe"),
        ("--recipe fast --config paper.yaml", "one recipe"),
        ("--recipe fast --max_epochs -1", "max_epochs"),
        ("--warmup_fraction 0.2", "--milestones null"),
        ("--milestones {five:fast}", "milestones"),
        ("--milestones {2.5:0.01}", "{5: 0.01}"),
        ("--batch_size 0", "batch_size"),
        ("--data cifar10 --data_root nowhere --download false", "nowhere"),
        ("--ckpt_path nowhere.ckpt", "nowhere.ckpt"),
        ("--run_dir paper.yaml/run", "paper.yaml"),
        ("--run_dir s3://bucket/run", "URL"),
    ],
)
def test_a_usage_error_is_one_line_and_leaves_nothing(flags: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text("recipe: paper\n")
    own = "" if "fast" in flags or "warmup" in flags else "--max_epochs 1 --milestones {}"
    where = ("--data", "synthetic", "--limit_train_batches", "1", "--run_dir", "new/run")
    done = command(tmp_path, "cifar.py", *where, *own.split(), *flags.split())
    assert_refused(done, "error: ", word)
    assert [path.name for path in tmp_path.iterdir()] == ["paper.yaml"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere compilers have other names")
def test_a_missing_compiler_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    few = "--max_epochs 1 --limit_train_batches 2 --milestones {} --compile true --run_dir run".split()
    done = command(tmp_path, "cifar.py", "--data", "synthetic", *few, run=run_anew, CXX="/absent")
    assert_refused(done, "compiler")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("script", "own"), [("fit.py", FIT_FLAGS), ("cifar.py", CIFAR_FLAGS)])
def test_help_and_print_config_name_every_flag(script: str, own: list[str], tmp_path: Path) -> None:
    shown = succeed(tmp_path, script, "--help").stdout
    assert all(f"--{flag}" in shown for flag in (*own, *COMMON_FLAGS, *TRAINER_FLAGS))
    printed = {line.split(":")[0] for line in succeed(tmp_path, script, "--print_config").stdout.splitlines()}
    assert {*own, *COMMON_FLAGS, *TRAINER_FLAGS} - printed == {"config", "print_config"}


def test_a_run_that_trains_nothing_is_kept(tmp_path: Path) -> None:
    succeed(tmp_path, *CIFAR, "--limit_train_batches", "0", "--limit_test_batches", "2", "--run_dir", "run")
    content = summary(tmp_path / "run")
    assert content["epochs"] == [] and whole_images(content["test_acc"], 8)
    assert (tmp_path / "run" / "config.yaml").exists()
