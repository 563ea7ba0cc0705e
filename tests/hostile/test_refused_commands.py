"""Commands with bad flags, lists, targets or checkpoints are refused."""

import shlex
import shutil

import numpy as np

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
import target_generation
from imagenet_inat.splits import __main__ as splits
from moco.export import __main__ as export
from tests.hostile.table import parametrize
from tests.refusals import at_line
from utils.report import __main__ as report


def command(main):
    """Return a reader that calls a command with the bad words alone."""
    return lambda words, folder, fixture: lambda: main(shlex.split(words))


def pretrain(words, folder, fixture):
    base = f"--dataset digits --data-root {fixture('digits_root')} -b 512 --moco-k 1024 -j 0 --device cpu --epochs 1"
    return lambda: stage1.main([*base.split(), *shlex.split(words)])


def pretrain_quarter(words, folder, fixture):
    """Run stage 1 with the bad words, in which {run} is the TSC run."""
    words = shlex.split(words.format(run=fixture("tsc_run")))
    return lambda: stage1.main([*fixture("flags"), "--run-dir", "run", *words])


def probe(words, folder, fixture):
    """Run stage 2 with the bad words, in which {run} is the TSC run with a probe."""
    fixture("probe_run")
    words = shlex.split(words.format(run=fixture("tsc_run")))
    return lambda: stage2.main([*fixture("probe_flags"), "--run-dir", "run", *words])


def target_array(array, folder, fixture):
    np.save(folder / "t.npy", array)
    return pretrain_quarter("--targeted --targets t.npy", folder, fixture)


def train_list(line, folder, fixture):
    (folder / "digits_LT_train.txt").write_text(f"images/0/0000.png 0\n{line}\n")
    return lambda: stage1.main([*fixture("digits_flags"), "--splits", ".", "--run-dir", "run"])


def folder_of_another_run(words, folder, fixture):
    shutil.copytree(fixture("tsc_run"), folder / "run", ignore=shutil.ignore_patterns("probe"))
    return pretrain_quarter(words, folder, fixture)


def run_folder_below_a_file(words, folder, fixture):
    (folder / "file").touch()
    return pretrain_quarter(words, folder, fixture)


PARSED = [
    ("data set", "--dataset mnist", "--dataset mnist"),
    ("no number", "--lr zero", "--lr zero"),
    ("nan", "--lr nan", "--lr nan"),
    ("no epochs", "--epochs 0", "--epochs 0"),
    ("momentum", "--moco-m 1.5", "--moco-m 1.5"),
    ("dimension", "--moco-dim 11111111111111111111", "--moco-dim 11111111111111111111 2147483647"),
    ("workers", "-j 2000", "-j 2000 1024"),
    ("flag", "--bogus", "--bogus"),
    ("spelling of a flag", "--batchsize 8", "--batchsize --batch-size"),
    ("case of a flag", "--moco-K 8", "--moco-K --moco-k"),
    ("spelling of a value", "--contrast bacth", "bacth batch?"),
    ("imbalance below 1", "--imbalance 0.5", "--imbalance 0.5 1"),
    ("folder instead of a checkpoint", "--resume .", "--resume folder"),
    ("device instead of a checkpoint", "--init-from /dev/null", "--init-from device"),
    ("milestones", "--schedule 60 x", "--schedule x"),
    ("seed", "--seed 99999999999999999999999", "--seed 2**63"),
]
EMPTY = [
    *((pretrain, flag) for flag in ("--resume", "--targets", "--run-dir", "--data-root", "--save-folder")),
    *((command(stage2.main), flag) for flag in ("--pretrained", "--resume", "--train-txt", "--splits")),
    *((command(target_generation.main), flag) for flag in ("--check", "--output", "--plot")),
    *((command(report.main), words) for words in ("RUN", "a --output", "--trials a")),
    *((command(export.main), words) for words in ("a OUT",)),
    *((command(splits.main), f"verify digits {flag}") for flag in ("--data-root", "--splits")),
    *((command(splits.main), f"make {words}") for words in ("a --output", "inat --json a")),
    (command(splits.main), "download imagenet --output"),
]
CHECKED = [
    ("network", "--arch resnet51", "--arch resnet51"),
    ("network too large", "--arch vgg16", "--arch vgg16 512 16"),
    ("queue and batch", "--moco-k 1000", "--moco-k 1000 --batch-size 512"),
    ("batch and epoch", "--batch-size 4096 --moco-k 4096", "--batch-size 4096 2648"),
    ("no such GPU", "--device cuda:99", "cuda:99"),
    ("device that computes nothing", "--device meta", "meta"),
    ("device without a backend", "--device privateuseone", "privateuseone"),
    ("device without a module", "--device hpu", "hpu"),
    ("image size", "--image-size 1000000", "--image-size 1000000 512 5,722,046"),
    ("one small image", "--batch-size 1 --image-size 4", "1 4-px"),
    ("machines", "--world-size 2 --rank 1", "--multiprocessing-distributed"),
    ("rank", "--multiprocessing-distributed --world-size 2 --rank 2", "--rank 2"),
    ("no such targets", "--targeted --targets typo.npy", "typo.npy"),
    ("no epoch left", "--epochs 3 --start-epoch 3", "--epochs 3"),
    ("imbalance", "--imbalance 500", "--imbalance 500 120"),
    ("no such checkpoint", "--resume nowhere.pth.tar", "--resume nowhere.pth.tar"),
    ("labels", "--loss MoCo --targeted", "--loss MoCo --targeted"),
    ("data root", "--dataset imagenet --data-root nowhere --image-size 64", "--data-root nowhere"),
    ("list folder", "--dataset imagenet --image-size 64 --splits nowhere", "nowhere/ImageNet_LT_train.txt"),
    (
        "no lists yet",
        "--dataset inat --image-size 64",
        ("iNaturalist18_train.txt", "python -m imagenet_inat.splits download inat --output"),
    ),
]
PROBES = [
    ("nothing", "", "--pretrained"),
    ("no such checkpoint", "--pretrained nowhere.pth.tar", "--pretrained nowhere.pth.tar"),
    ("evaluates nothing", "--evaluate", "--evaluate --resume"),
    ("evaluates and trains", "--evaluate --pretrained {run}/last.pth.tar", "--evaluate --pretrained"),
    ("network", "--arch resnet32 --pretrained {run}/last.pth.tar", "last.pth.tar resnet20 resnet32"),
    ("log as checkpoint", "--pretrained {run}/log.jsonl", "log.jsonl"),
    ("results as checkpoint", "--pretrained {run}/probe/results.json", "probe/results.json"),
    ("stage-1 checkpoint", "--evaluate --resume {run}/last.pth.tar", "last.pth.tar"),
    ("no epoch left", "--pretrained {run}/last.pth.tar --epochs 2 --start-epoch 2", "--epochs 2"),
]
TARGETS = [
    ("shape", np.eye(10, 8), ("t.npy", "(10, 8)", "(10, 16)")),
    ("norm", 2 * np.eye(10, 16), ("t.npy", "0, 1, 2", "7", "2")),
    ("inf", np.full((10, 16), np.inf), ("t.npy", "0, 1, 2", "7")),
]
RESUMED = [
    ("model", "--resume {run}/last.pth.tar --moco-dim 32 --override", "last.pth.tar 16 32"),
    ("seed", "--resume {run}/last.pth.tar --seed 2 --override", "--seed 2 1"),
]
ROWS = [
    *((name, pretrain, words, facts) for name, words, facts in (*PARSED, *CHECKED)),
    *(
        (f"empty {words}", reader, " ".join(word for word in [*words.split(), "''"] if not word.isupper()), facts)
        for reader, words in EMPTY
        for facts in [next(word for word in reversed(words.split()) if word.isupper() or word.startswith("--"))]
    ),
    *((f"probe: {name}", probe, words, facts) for name, words, facts in PROBES),
    *((f"targets: {name}", target_array, array, facts) for name, array, facts in TARGETS),
    ("list: no label", train_list, "images/0/0000.png", (at_line("digits_LT_train.txt", 2), "images/0/0000.png")),
    ("list: label", train_list, "images/0/0000.png 10", (at_line("digits_LT_train.txt", 2), "10", "9")),
    *((f"resumed: {name}", pretrain_quarter, words, facts) for name, words, facts in RESUMED),
    ("second run", folder_of_another_run, "", "run --resume"),
    ("other run", folder_of_another_run, "--resume {run}/checkpoint_0001.pth.tar --override", "run --resume"),
    ("run folder below a file", run_folder_below_a_file, "--run-dir file/run", "file/run"),
]


@parametrize(ROWS)
def test_bad_command_is_refused(reader, bad, facts, check):
    check(reader, bad, facts)
