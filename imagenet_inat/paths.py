"""The flags that select the lists of a data set, and how the lists and images of a run are found from them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imagenet_inat import datasets
from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.lists.format import generated_folders
from utils.cli.flags import ENCODER, Group
from utils.cli.numbers import number_type, positive_float, positive_int
from utils.cli.parser import Parser
from utils.configs import FromArgs
from utils.errors import InputError
from utils.files import file_problem

SPLITS = ("train", "val", "test")


class Lists(NamedTuple):
    """The lists of a run.

    Attributes:
        root: folder that the lists' paths start from.
        files: the list of each split.
        hints: what to do if the list of a split is missing, for the error message.
    """

    root: Path
    files: dict[str, Path]
    hints: dict[str, str]

    def require(self, split: str) -> None:
        """Raise InputError if the list of a split is missing."""
        if problem := file_problem(self.files[split]):
            raise InputError(f"{self.files[split]}: {problem}, expected a list; {self.hints[split]}")


def add_list_arguments(group: Parser | Group) -> None:
    """Add the flags that select the lists of a data set."""
    group.add_argument(
        "--splits",
        metavar="DIR",
        help="Folder of the lists, such as ImageNet_LT_train.txt (default: in imagenet_inat/data or --data-root).",
        affects_result=False,
        by_content=True,
        stored=ENCODER,
    )
    for split in SPLITS:
        group.add_argument(
            f"--{split}-txt",
            metavar="FILE",
            help=f"List to use as {split}, instead of the one in --splits.",
            affects_result=False,
            by_content=True,
            stored=ENCODER,
        )
    ratios = datasets.default_imbalances()
    names_by_ratio = {ratio: ", ".join(name for name in ratios if ratios[name] == ratio) for ratio in ratios.values()}
    group.add_argument(
        "--imbalance",
        type=positive_float,
        metavar="RATIO",
        help="Largest / smallest class of the data sets that are generated (default: "
        f"{'; '.join(f'{ratio:g} for {names}' for ratio, names in names_by_ratio.items())}).",
        stored=ENCODER,
    )
    largest = datasets.default_largest_classes()
    group.add_argument(
        "--largest",
        type=positive_int,
        metavar="N",
        help=f"Training images of the largest class of {', '.join(largest)} "
        f"(default: {', '.join(str(count) for count in largest.values())}; at most "
        f"{', '.join(str(datasets.get_spec(name).largest_class_max) for name in largest)}).",
        legacy=None,
        stored=ENCODER,
    )
    generated = _written_at_first_use()
    group.add_argument(
        "--split-seed",
        type=number_type("seed", int, lambda value: 0 <= value < 2**32, "0 to 4294967295"),
        metavar="SEED",
        help=f"Random seed that selects the images in the lists of {', '.join(generated)} (default: 0). --seed does "
        "not change them.",
        rare=True,
        legacy=lambda args: 0 if args.dataset in generated else None,
        stored=ENCODER,
    )


@dataclass(frozen=True, kw_only=True)
class ListFlags(FromArgs):
    """The flags that select the lists of a data set; see --help."""

    data_root: str | None
    splits: str | None = None
    train_txt: str | None = None
    val_txt: str | None = None
    test_txt: str | None = None
    imbalance: float | None = None
    largest: int | None = None
    split_seed: int | None = None

    @property
    def files(self) -> dict[str, str | None]:
        """The list that is named for each split."""
        return {split: getattr(self, f"{split}_txt") for split in SPLITS}

    @property
    def name_all_lists(self) -> bool:
        """Whether --splits, or all three list flags, are given, so that no list is generated."""
        return bool(self.splits) or all(self.files.values())

    def with_class_sizes(self, spec: DatasetSpec) -> "ListFlags":
        """Return the flags with the data set's defaults of --imbalance, --largest and --split-seed.

        Raises:
            InputError: the imbalance or the largest class is not possible, or --split-seed is not supported.
        """
        largest, split_seed = resolve_largest(spec, self.largest), resolve_split_seed(spec, self.split_seed)
        imbalance = resolve_imbalance(spec, self.imbalance, largest)
        return replace(self, largest=largest, imbalance=imbalance, split_seed=split_seed)


def find_lists(spec: DatasetSpec, flags: ListFlags) -> Lists:
    """Find the lists from --data-root, --splits and --<split>-txt, otherwise by their default names.

    The lists of digits, fashion and glyphs are written at first use. A list that serves as two splits may be given as
    either.
    """
    data_root, imbalance = flags.data_root or "data", flags.imbalance
    selection = imbalance, flags.largest, flags.split_seed or 0
    root, folder = Path(data_root), spec.lists_folder
    # Nothing is written if the flags name all lists and the images are not generated.
    if spec.write_files and not (flags.name_all_lists and spec.image_folder):
        spec.write_files(root, *selection)
    if spec.imbalance_ratio:
        root, folder = generated_folders(spec.set_name, root, *selection)
    if spec.image_folder:
        root = spec.image_folder(Path(data_root))
    folder, given = Path(flags.splits or folder), flags.files
    if spec.val_split == spec.test_split:
        val, test = given["val"], given["test"]
        given |= {"val": val or test, "test": test or val}
    files = {split: Path(file or folder / spec.list_name(split)) for split, file in given.items()}
    hints = {}
    for split, file in files.items():
        command = spec.missing_list_advice.format(folder=file.parent, data_root=data_root, imbalance=imbalance)
        hints[split] = f"to get it: {command}; or set --splits to the folder of the lists"
    hints["val"] += "; or add --holdout 0.1 to stage 1, which uses a part of the training images"
    return Lists(root, files, hints)


def resolve_largest(spec: DatasetSpec, given: int | None) -> int | None:
    """Return the size of the largest class, or None if it is fixed.

    Raises:
        InputError: the given size is out of range, or the size is fixed.
    """
    if not spec.largest_class_max:
        if given is not None:
            supported = ", ".join(datasets.default_largest_classes())
            raise InputError(
                f"--largest {given}: the largest class of {spec.name} is fixed; use it only with {supported}"
            )
        return None
    if given and given > spec.largest_class_max:
        raise InputError(
            f"--largest {given}: expected at most {spec.largest_class_max} (the other images are for validation)"
        )
    return given or spec.largest_class


def resolve_imbalance(spec: DatasetSpec, given: float | None, largest: int | None = None) -> float | None:
    """Return the imbalance of the lists, or None if the lists are fixed.

    Args:
        largest: images of the largest class, if it can be chosen.

    Raises:
        InputError: the given imbalance is out of range, or the lists are fixed.
    """
    if spec.imbalance_ratio is None and given is not None:
        generated = ", ".join(datasets.default_imbalances())
        raise InputError(f"--imbalance {given:g}: the lists of {spec.name} are fixed; use it only with {generated}")
    imbalance, most = given or spec.imbalance_ratio, largest or spec.largest_class
    if imbalance and not 1 <= imbalance <= most:
        raise InputError(f"--imbalance {imbalance:g}: expected 1 to {most}")
    return imbalance


def resolve_split_seed(spec: DatasetSpec, given: int | None) -> int | None:
    """Return the seed of the selection of images, or None if --split-seed does not select them.

    Raises:
        InputError: a seed is given, and the data set does not support it.
    """
    if spec.write_files:
        return given or 0
    if given is not None:
        supported = ", ".join(_written_at_first_use())
        raise InputError(f"--split-seed {given}: not supported with {spec.name}; use it only with {supported}")
    return None


def _written_at_first_use() -> list[str]:
    return [name for name, spec in datasets.REGISTRY.items() if spec.write_files]
