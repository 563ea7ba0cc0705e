"""Load a trained classifier for predictions: from a checkpoint of stage 2, or an exported program."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imagenet_inat import data_flags, datasets, stored_flags
from moco.export import metadata
from moco.export.metadata import Metadata
from moco.export.programs import IMAGES, LOGITS
from moco.heads import HEADS, networks
from moco.pretrained import CLASSIFIER_PREFIX, is_stage1
from utils.cli import shared_flags
from utils.cli.machine_flags import add_speed_arguments
from utils.cli.parser import Parser
from utils.distributed import log
from utils.errors import InputError, first_line
from utils.run import checkpoint, evaluation
from utils.run.compute import ComputeConfig


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
        logits: maps normalised images (N, 3, S, S) on the device to logits (N, C) float32.
        metadata: how it sees images, and the names of the classes; mean, std, views and num_classes are known.
        device: where it runs.
        precision: returns the context in which it runs.
    """

    logits: Callable[[Tensor], Tensor]
    metadata: Metadata
    device: torch.device
    precision: Callable[[], AbstractContextManager] = nullcontext


def load_classifier(source: Path, device: torch.device) -> Classifier:
    """Load a classifier from a run folder or a checkpoint of stage 2, or from a .pt2 or .onnx file.

    Raises:
        InputError: the file cannot be read, contains no classifier, or does not store how it sees images.
    """
    if source.is_dir():
        source = _checkpoint_in(source)
    loaders = {".pt2": _load_pt2, ".onnx": _load_onnx}
    if source.suffix not in loaders:
        return _load_checkpoint(source, device)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    return loaders[source.suffix](source, device)


def _checkpoint_in(folder: Path) -> Path:
    """Return the checkpoint of the selected epoch or fit in a run folder of stage 2, or the last one."""
    inner = sorted(path.parent for path in folder.glob(f"*/{evaluation.BEST}"))
    for name in (evaluation.BEST,) if inner else (evaluation.BEST, checkpoint.LAST):  # stage 1 contains stage 2
        if (folder / name).is_file():
            return folder / name
    choices = f", such as {' or '.join(map(str, inner[:3]))}" if inner else ""
    raise InputError(f"{folder}: has no {evaluation.BEST}, expected a run folder of stage 2{choices}")


def _load_checkpoint(source: Path, device: torch.device) -> Classifier:
    state = evaluation.read_stage2_checkpoint(source)
    if is_stage1(state.weights):
        stored = any(key.startswith(CLASSIFIER_PREFIX) for key in state.weights)
        head = "own" if stored or state.args.get("joint") else "logistic"  # targets are not stored as a classifier
        raise InputError(
            f"checkpoint {source}: is of stage 1, expected a classifier of stage 2. Save one: "
            f"python main_lincls_imba.py --pretrained {source} --head {head}"
        )
    args = stored_flags.parse_stored(_stored_parser(), source)
    spec = datasets.get_spec(args.statistics or args.dataset)
    views = args.views or datasets.get_spec(args.dataset).view
    head = next(name for name in (state.args.get("head"), "linear") if name in list(HEADS))
    num_classes = _num_classes(state.weights, source)
    stored = {"head": head, "views": views, "images_as_shown": state.args.get("images_as_shown")}
    entries = {"args": vars(args) | stored, "class_names": state.class_names}
    entries["statistics"] = state.statistics
    facts = Metadata.of_run(
        entries, arch=args.arch, image_size=args.image_size, outputs=[LOGITS], num_classes=num_classes
    )
    model = networks.build_classifier(args.arch, args.image_size, num_classes, head=head)
    model = networks.load_trained(model, head, state.weights, source).to(device).eval()
    compute = ComputeConfig(device, args.amp, args.channels_last, tf32=args.tf32)
    compute.apply_to(model)

    def logits(images: Tensor) -> Tensor:
        with compute.autocast():
            return model(images)

    return Classifier(logits, facts.with_statistics(spec.mean, spec.std), device, compute.precision_context)


def _num_classes(weights: dict[str, Tensor], source: Path) -> int:
    """Return the number of classes of the classifier `fc`, which may follow a projection."""
    bias = weights.get("fc.bias", weights.get("fc.classifier.bias"))
    if bias is None or bias.ndim != 1:
        raise InputError(f"checkpoint {source}: contains no classifier fc, expected a checkpoint of stage 2")
    return len(bias)


def _stored_parser() -> Parser:
    """Return a parser of the flags that a checkpoint stores and that decide its predictions."""
    parser = Parser()
    data_flags.add_data_arguments(parser)
    shared_flags.add_model_group(parser)
    add_speed_arguments(parser)
    return parser


def _load_pt2(source: Path, device: torch.device) -> Classifier:
    extra = {f"{metadata.KEY}.json": ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(source, extra_files=extra)
    except Exception as error:  # a foreign file can raise any exception
        raise InputError(
            f"{source}: not a program of this PyTorch, {torch.__version__} ({first_line(error)})"
        ) from None
    facts = _known(Metadata.from_json(extra[f"{metadata.KEY}.json"], source), source)
    if device.type != "cpu":
        try:
            from torch.export.passes import move_to_device_pass
        except ImportError:
            log(f"note: {source}: runs on the CPU, because PyTorch {torch.__version__} cannot move it to {device}")
            device = torch.device("cpu")
        else:
            program = move_to_device_pass(program, device)
    run, output = program.module(), facts.outputs.index(LOGITS)
    return Classifier(lambda images: run(images)[output], facts, device)


def _load_onnx(source: Path, device: torch.device) -> Classifier:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{source}: onnxruntime not installed. Run pip install -r requirements-extra.txt") from None
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        else:
            log(f"note: {source}: runs on the CPU; install onnxruntime-gpu to use the GPU")
    try:
        session = onnxruntime.InferenceSession(str(source), providers=providers)
    except Exception as error:  # a foreign file can raise any exception
        raise InputError(f"{source}: not an ONNX program ({first_line(error)})") from None
    text = session.get_modelmeta().custom_metadata_map.get(metadata.KEY)
    facts = _known(Metadata.from_json(text, source), source)

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0])

    return Classifier(logits, facts, torch.device("cpu"))  # the session copies images to the GPU


def _known(facts: Metadata, source: Path) -> Metadata:
    """Return the metadata of a program, with mean and std of its data set if an older run did not store them.

    Raises:
        InputError: the program has no classifier, or it is not known how it sees images.
    """
    if LOGITS not in facts.outputs or not facts.num_classes:
        raise InputError(f"{source}: has no classifier; export a checkpoint of stage 2, such as model_best.pth.tar")
    if not facts.mean and facts.statistics in datasets.names():
        spec = datasets.get_spec(facts.statistics)
        facts = facts.with_statistics(spec.mean, spec.std)
    if not facts.mean or not facts.views:
        raise InputError(f"{source}: its metadata has no mean, std or views; export a checkpoint of this project")
    return facts
