"""Registry of the data sets, with one DatasetSpec each.

To add a data set, add a DatasetSpec and put its lists into imagenet_inat/data/<set_name>. All scripts then accept it. A
data set that is used only once needs no DatasetSpec; use --dataset custom.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imagenet_inat.sets import digits, fashion, glyphs
from imagenet_inat.sets.cifar100 import CIFAR100_SUPERCLASSES

LISTS_ROOT = Path(__file__).parent / "data"
CIFAR = {"image_size": 32, "arch": "resnet32", "view": "cifar", "val_split": "test", "imbalance_ratio": 100.0}
IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class DatasetSpec:
    """The properties of one data set.

    Attributes:
        set_name: prefix of the split lists, <set_name>_{train,val,test}.txt.
        source: where the images come from; shown if they are missing.
        missing_list_advice: what to do if a list is missing: advice, or a template of the command that writes it.
        published: whether the lists can be downloaded.
        eval_set: set_name of the data set whose evaluation lists are used, in whose folder all lists are; "": its own.
        wnid_folder: see `lists.format.read_split`.
        view: a key of VIEWS in moco/views/rows.py.
        jitter: whether the colour jitter of the view is used; AutoAugment and RandAugment always are.
        val_split, test_split: file suffix of the list that serves as validation and as test list; equal if one list
            serves as both.
        repeat: passes over the training list per epoch; more than one for tiny data sets.
        flat_folder: folder whose images may lie directly in it, although the lists' paths have class folders (val/ of
            ImageNet).
        as_shown: whether images are decoded as viewers show them, see `decoding.open_rgb`; otherwise as by the authors'
            code, with Pillow's convert("RGB").
        superclasses: superclass of each class, where the classes of a superclass have similar meanings, or None.
        imbalance_ratio: default of --imbalance for a generated data set, whose images and lists lie below --data-root
            (see `generated_folders`); None if the lists are fixed.
        largest_class: default number of training images of the largest class of a generated data set.
        largest_class_max: maximum of --largest; 0 if the size of the largest class is fixed.
        write_files: writes the generated files for (--data-root, imbalance, --largest, --split-seed) once.
        image_folder: returns the folder of images that are not generated, for (--data-root).
    """

    name: str
    set_name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    missing_list_advice: str = "write it, or name another with --train-txt, --val-txt or --test-txt"
    published: bool = False
    eval_set: str = ""
    wnid_folder: str = ""
    image_size: int = 224
    arch: str = "resnet50"
    view: str = "photo"
    jitter: bool = True
    val_split: str = "val"
    test_split: str = "test"
    repeat: int = 1
    flat_folder: str = ""
    as_shown: bool = False
    superclasses: tuple[int, ...] | None = None
    imbalance_ratio: float | None = None
    largest_class: int = 0
    largest_class_max: int = 0
    write_files: Callable[[Path, float, int | None, int], object] | None = None
    image_folder: Callable[[Path], Path] | None = None

    def list_name(self, split: str) -> str:
        """Return the file name of the list for a split: train, val or test."""
        suffix = {"val": self.val_split, "test": self.test_split}.get(split, split)
        return f"{self.set_name if split == 'train' else self.eval_set or self.set_name}_{suffix}.txt"

    @property
    def lists_folder(self) -> Path:
        """Default folder of the lists, unless they are generated."""
        return LISTS_ROOT / (self.eval_set or self.set_name)

    @property
    def list_names(self) -> list[str]:
        """File names of all lists of the data set, without repetition."""
        return list(dict.fromkeys(self.list_name(split) for split in ("train", "val", "test")))


DOWNLOAD = "python -m imagenet_inat.splits download"
MAKE = "python -m imagenet_inat.splits make"

# ImageNet-LT0 to LT8 (Kang et al., ICLR 2021): prefix of each training list in the KCL authors' repository.
IMAGENET_LADDER = {0: "imagenet_100k"} | {step: f"imagenet_lt{step}" for step in (2, 4, 6, 8)}


def _imagenet_ladder(step: int, set_name: str) -> DatasetSpec:
    """Return the spec of ImageNet-LT<step>: about as many images as ImageNet-LT, and less imbalance."""
    return DatasetSpec(
        name=f"imagenet_lt{step}",
        set_name=set_name,
        num_classes=1000,
        **IMAGENET_STATISTICS,
        source="ILSVRC 2012 with train/<wnid>/*.JPEG and val/",
        missing_list_advice=f"{DOWNLOAD} imagenet_lt{step} --output {{folder}}",
        published=True,
        eval_set="ImageNet_LT",
        wnid_folder="train",
        flat_folder="val",
    )


REGISTRY = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="imagenet",
            set_name="ImageNet_LT",
            num_classes=1000,
            **IMAGENET_STATISTICS,
            source="ILSVRC 2012 with train/<wnid>/*.JPEG and val/",
            missing_list_advice=f"{DOWNLOAD} imagenet --output {{folder}}",
            published=True,
            flat_folder="val",
        ),
        *(_imagenet_ladder(step, set_name) for step, set_name in IMAGENET_LADDER.items()),
        DatasetSpec(
            name="inat",
            set_name="iNaturalist18",
            num_classes=8142,
            mean=(0.466, 0.471, 0.380),
            std=(0.195, 0.194, 0.192),
            source="iNaturalist 2018 with train_val2018/",
            missing_list_advice=f"{DOWNLOAD} inat --output {{folder}}",
            published=True,
            jitter=False,
            test_split="val",
        ),
        DatasetSpec(
            name="places",
            set_name="Places_LT",
            num_classes=365,
            **IMAGENET_STATISTICS,
            source="Places365-Standard, small images",
            missing_list_advice=f"{DOWNLOAD} places --output {{folder}}",
            published=True,
        ),
        # The TSC authors' code uses CIFAR-10's statistics for both (--statistics cifar10). The official 10,000 test
        # images are the only balanced ones, so they also serve as validation.
        DatasetSpec(
            name="cifar10",
            set_name="CIFAR10_LT",
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            source="CIFAR-10 as image files",
            missing_list_advice=f"{MAKE} cifar10 --imbalance {{imbalance:g}} --output {{data_root}}",
            **CIFAR,
            largest_class=5000,
        ),
        DatasetSpec(
            name="cifar100",
            set_name="CIFAR100_LT",
            num_classes=100,
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            source="CIFAR-100 as image files",
            missing_list_advice=f"{MAKE} cifar100 --imbalance {{imbalance:g}} --output {{data_root}}",
            superclasses=CIFAR100_SUPERCLASSES,
            **CIFAR,
            largest_class=500,
        ),
        DatasetSpec(
            name="digits",
            set_name="digits_LT",
            num_classes=10,
            mean=(0.305, 0.305, 0.305),
            std=(0.376, 0.376, 0.376),
            source="scikit-learn's handwritten digits, written at first use",
            image_size=16,
            arch="resnet20",
            view="digit",
            repeat=8,
            imbalance_ratio=50.0,
            largest_class=digits.TRAIN_LARGEST,
            write_files=digits.prepare,
        ),
        DatasetSpec(
            name="fashion",
            set_name=fashion.SET_NAME,
            num_classes=fashion.NUM_CLASSES,
            mean=(0.286, 0.286, 0.286),
            std=(0.353, 0.353, 0.353),
            source="Fashion-MNIST's IDX files",
            image_size=28,
            arch="lenet",
            view="grey",
            imbalance_ratio=100.0,
            largest_class=1000,
            largest_class_max=6000 - fashion.VAL_PER_CLASS,
            write_files=fashion.prepare,
            image_folder=fashion.find_image_folder,
        ),
        DatasetSpec(
            name="glyphs",
            set_name=glyphs.SET_NAME,
            num_classes=glyphs.NUM_CLASSES,
            mean=(0.080, 0.080, 0.080),
            std=(0.245, 0.245, 0.245),
            source="characters in the installed fonts, rendered at first use",
            image_size=28,
            arch="lenet",
            view="digit",
            imbalance_ratio=100.0,
            largest_class=glyphs.LARGEST,
            write_files=glyphs.prepare,
        ),
    )
}

# Any folder of images with its own lists. num_classes, 0 here, is read from the training list.
CUSTOM = DatasetSpec(
    name="custom",
    set_name="custom",
    num_classes=0,
    **IMAGENET_STATISTICS,
    source="your images",
    as_shown=True,
    missing_list_advice=f"{MAKE} IMAGES --output LISTS, then --splits LISTS; or --train-txt, --val-txt and --test-txt",
)


def names() -> list[str]:
    """Return the names that --dataset accepts."""
    return [*sorted(REGISTRY), CUSTOM.name]


def default_imbalances() -> dict[str, float]:
    """Return the default of --imbalance for each generated data set."""
    return {name: spec.imbalance_ratio for name, spec in REGISTRY.items() if spec.imbalance_ratio}


def default_largest_classes() -> dict[str, int]:
    """Return the default of --largest for each data set that supports the flag."""
    return {name: spec.largest_class for name, spec in REGISTRY.items() if spec.largest_class_max}


def get_spec(name: str) -> DatasetSpec:
    """Return the spec of a data set. `custom` is not in REGISTRY, because its class count is not known in advance."""
    return CUSTOM if name == CUSTOM.name else REGISTRY[name]
