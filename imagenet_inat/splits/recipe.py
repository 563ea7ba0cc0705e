"""Look at the images of a new data set, and write a recipe of stage 1 that fits their size and number."""

import math
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imagenet_inat.decoding import UNREADABLE, open_rgb
from utils.distributed import log
from utils.files import write_text
from utils.run.loop import ENOUGH_STEPS

RECIPE, DATA = "recipe.txt", "data.txt"  # flags of stage 1; flags that both stages and the baseline share
SAMPLE_SIZE = 200  # images whose headers are read
MIRROR_SAMPLE, MIRROR_FEWEST = 1000, 50  # images that are compared with mirrored ones: at most, at least
MIRROR_SIDE = 16  # pixels; these images are shrunk to this side
GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}
LARGE_DATA = 50_000  # images from which ResNet-50 at 224 pixels is chosen
MIN_EPOCHS, MAX_EPOCHS = 100, 1000


class ImageFacts(NamedTuple):
    """What decides a recipe.

    Attributes:
        counts: training images of each class, (C,).
        sizes: (width, height) of some images.
        is_grey: whether all of them are grey.
        mirror_test: result of `mirror_accuracies`; (0, 0) unless all images are grey.
    """

    counts: np.ndarray
    sizes: list[tuple[int, int]]
    is_grey: bool
    mirror_test: tuple[float, float] = (0.0, 0.0)

    @property
    def side(self) -> int:
        """The median of the shorter side, in pixels."""
        return int(np.median([min(size) for size in self.sizes]))

    @property
    def mirroring_changes_class(self) -> bool:
        """Whether mirroring costs at least half of the accuracy above chance, and at least 15 points."""
        chance, (original, mirrored) = 100 / len(self.counts), self.mirror_test
        return original - mirrored >= max(15, (original - chance) / 2)

    @property
    def description(self) -> str:
        widths, heights = np.median(self.sizes, axis=0).astype(int)
        kind = "grey" if self.is_grey else "colour"
        size = f"{widths} × {heights} pixels" if len(set(self.sizes)) == 1 else f"about {widths} × {heights} pixels"
        return (
            f"{self.counts.sum():,} training images of {len(self.counts)} classes ({self.counts.max():,} … "
            f"{self.counts.min():,} per class), {kind}, {size}"
        )


def write_recipe(output: Path, root: Path, train: list[str], counts: np.ndarray) -> Path | None:
    """Write recipe.txt and data.txt, which it includes, into the folder of the lists, and print them.

    Existing files are kept.

    Args:
        output: the folder of the lists. root: data root. train: paths of the training images.
        counts: training images of each class, (C,).

    Returns:
        The recipe, or None if no image of the sample can be read.
    """
    facts = look_at_images(root, train, counts)
    if facts is None:
        log(f"note: no recipe, because none of {min(len(train), SAMPLE_SIZE)} images below {root} can be opened")
        return None
    where = shlex.join(["--dataset", "custom", "--data-root", str(root), "--splits", str(output)])
    start = shlex.join(["python", "main_moco_supcon_imba.py", f"@{output / RECIPE}", "--run-dir", "RUN"])
    files = {
        DATA: ["# Flags of both stages and of examples.cross_entropy.", where, *map("  # ".join, data_flags(facts))],
        RECIPE: [
            f"# Stage 1, KCL and a classifier. Start: {start}",
            f"@{DATA}",
            *map("  # ".join, training_flags(facts)),
        ],
    }
    log(f"images: {facts.description}")
    for name, lines in files.items():
        text, file = "".join(f"{line}\n" for line in lines), output / name
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            log(f"{file}: already exists and was kept; delete it to write it again")
            continue
        write_text(file, text)
        for line in (f"wrote {file}:", *(f"  {line}" for line in lines[1:])):
            log(line)
    return output / RECIPE


def look_at_images(root: Path, train: list[str], counts: np.ndarray) -> ImageFacts | None:
    """Read the headers of a sample of the training images; None if no image can be read."""
    chosen = dict.fromkeys(np.linspace(0, len(train) - 1, min(len(train), SAMPLE_SIZE)).round().astype(int).tolist())
    headers = _read_headers(root, [train[number] for number in chosen])
    if not headers:
        return None
    sizes = [size for size, _ in headers]
    is_grey = {mode for _, mode in headers} <= GREY_MODES or _pixels_are_grey(
        root, [train[number] for number in chosen]
    )
    return ImageFacts(counts, sizes, is_grey, mirror_accuracies(root, train, counts) if is_grey else (0.0, 0.0))


def mirror_accuracies(root: Path, train: list[str], counts: np.ndarray) -> tuple[float, float]:
    """Classify images, and the same images mirrored, by the nearest other image of a sample of the training images.

    Mirroring a character usually gives another character or none. Most objects keep their class.

    Args:
        train: paths of the training images, class by class. counts: training images of each class, (C,).

    Returns:
        The accuracy of the original and of the mirrored images in percent, as means over classes; (0, 0) if there are
        too few images.
    """
    chosen = np.unique(np.linspace(0, len(train) - 1, MIRROR_SAMPLE).round().astype(int))
    images, labels = [], []
    all_labels = np.repeat(np.arange(len(counts)), counts)
    for number in tqdm(chosen, desc="mirrored images", unit="image", leave=False, disable=None):
        try:
            image = open_rgb(root, train[number]).convert("L").resize((MIRROR_SIDE, MIRROR_SIDE))
        except UNREADABLE:  # reported by verify
            continue
        images.append(np.asarray(image, dtype=np.float32))
        labels.append(all_labels[number])
    if len(images) < MIRROR_FEWEST:
        return 0.0, 0.0
    pixels, classes = np.stack(images), np.array(labels)
    return _nearest_accuracy(pixels, pixels, classes), _nearest_accuracy(pixels[:, :, ::-1], pixels, classes)


def _nearest_accuracy(queries: np.ndarray, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy in percent of labels from the nearest image, which is never the query's own original."""
    queries, images = queries.reshape(len(queries), -1), images.reshape(len(images), -1)
    distances = np.square(images).sum(1) - 2 * queries @ images.T  # without |query|², which is constant in a row
    np.fill_diagonal(distances, np.inf)
    hits = labels[distances.argmin(1)] == labels
    return 100 * float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def data_flags(facts: ImageFacts) -> list[tuple[str, str]]:
    """Return the flags of both stages that fit the images, each with the reason for its value."""
    return [*_network(facts.side, int(facts.counts.sum())), _views(facts)]


def training_flags(facts: ImageFacts) -> list[tuple[str, str]]:
    """Return the flags of stage 1 that fit the number of images, each with the reason for its value."""
    count, num_classes = int(facts.counts.sum()), len(facts.counts)
    batch = 2 ** int(math.log2(max(2, min(256, max(count // 32, min(count, 16))))))
    several_of_each = 2 ** math.ceil(math.log2(4 * num_classes))  # a batch with several images of most classes
    batch = several_of_each if batch < several_of_each <= min(256, count // 4) else batch
    steps = count // batch
    epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, 10 * math.ceil(ENOUGH_STEPS / steps / 10)))
    in_batch = 4 * num_classes <= batch
    rate = 0.1 * math.sqrt(batch / 64) if in_batch else 0.1 * batch / 256
    return [
        _contrast(in_batch, num_classes, batch, count),
        (f"-b {batch}", f"{steps} steps per epoch, for {count:,} images"),
        (
            f"--epochs {epochs}",
            f"{epochs * steps:,} steps (aim: {ENOUGH_STEPS:,} or more, in {MIN_EPOCHS} to {MAX_EPOCHS} epochs)",
        ),
        (f"--lr {rate:.3g} --wd 5e-4", "the rate depends on the batch; weight decay of the Fashion-MNIST recipe"),
        ("--mlp --cos", "two-layer projection head and cosine schedule"),
        ("--joint 1", "also train a classifier, which improves the features; 0: KCL as in the paper"),
    ]


def _network(side: int, count: int) -> list[tuple[str, str]]:
    if side <= 40:
        image_size = max(16, 4 * round(side / 4))
        size = (f"--image-size {image_size}", f"the images' shorter side is {side} pixels")
        if not torch.cuda.is_available():
            arch = "lenet_strided" if image_size >= 28 else "lenet"  # the former needs 25 pixels
            reason = "a small network, because no GPU was found; with one, use resnet32"
            return [size, (f"-a {arch}", reason), ("--channels-last", "memory format of the Fashion-MNIST recipe")]
        return [size, ("-a resnet32", "0.5 million weights, no early pooling, for small images")]
    if side <= 96:
        return [
            ("--image-size 64", f"the images' shorter side is {side} pixels"),
            ("-a resnet18_small", "ResNet-18 with a 3 × 3 stem and no early pooling, for small images"),
        ]
    if side >= 200 and count >= LARGE_DATA:
        return [
            ("--image-size 224", f"{count:,} images are enough for the usual size of photos"),
            ("-a resnet50", "the network of the paper"),
        ]
    return [
        ("--image-size 128", "a third of the time of 224; try 224 if classes differ in small details"),
        ("-a resnet18", f"less than half of the weights of ResNet-50, for {count:,} images"),
    ]


def _contrast(in_batch: bool, num_classes: int, batch: int, count: int) -> tuple[str, str]:
    if in_batch:
        return "--contrast batch", f"a batch of {batch} has several images of most of the {num_classes} classes"
    queue = batch * max(1, min(65536, count) // batch)
    return (
        f"--contrast queue --moco-k {queue} --moco-m 0.99",
        f"{num_classes} classes are too many for a batch of {batch}; the queue holds at most one epoch",
    )


def _views(facts: ImageFacts) -> tuple[str, str]:
    if facts.is_grey and facts.mirroring_changes_class:
        original, mirrored = facts.mirror_test
        accuracies = f"nearest-neighbour accuracy: {original:.0f} % → {mirrored:.0f} %"
        return ("--views digit", f"no flip: mirroring changes the class of these grey images ({accuracies})")
    if facts.is_grey:
        return ("--views grey", "the images are grey: crop and flip; to avoid flips, use --views digit")
    if facts.side <= 96:
        return ("--views cifar", "crop, flip, jitter, grey, without blur, for small images")
    return ("--views simclr", "crops keep 20 % of the image or more; those of the default view, photo, 8 % or more")


def _pixels_are_grey(root: Path, paths: list[str]) -> bool:
    """Return whether all images are grey, although they are stored in colour."""
    for path in paths:
        try:
            pixels = np.asarray(open_rgb(root, path))
        except UNREADABLE:  # reported by verify
            continue
        if (pixels != pixels[:, :, :1]).any():
            return False
    return True


def _read_headers(root: Path, paths: list[str]) -> list[tuple[tuple[int, int], str]]:
    """Return (width, height) and mode of the images that can be opened. The pixels are not decoded."""
    headers = []
    for path in tqdm(paths, desc="sizes", unit="image", leave=False, disable=None):
        try:
            with Image.open(root / path) as image:
                headers.append((image.size, image.mode))
        except UNREADABLE:  # reported by verify
            continue
    return headers
