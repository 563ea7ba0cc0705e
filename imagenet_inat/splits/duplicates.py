"""Find images that are the same picture under different names, by a hash of their pixels."""

from imagenet_inat.datasets import CUSTOM, DatasetSpec
from imagenet_inat.splits.findings import MAX_CASES, Findings, format_first_cases
from imagenet_inat.splits.verify_labels import SplitList


def check_duplicates(
    spec: DatasetSpec, lists: list[SplitList], images: list[list[tuple[str, bytes]]], findings: Findings
) -> None:
    """Report pictures that are in two lists or in two classes under different names.

    Published data sets contain some, so for them these are only notes. Unreadable images are skipped.

    images: the images of each list, as `verify_images.check_images` returns them.
    """
    pictures: dict[bytes, dict[str, tuple[str, int]]] = {}  # digest -> path -> (list, label)
    for one, of_list in zip(lists, images, strict=True):
        for (path, digest), label in zip(of_list, one.labels.tolist(), strict=True):
            if digest:
                pictures.setdefault(digest, {}).setdefault(path, (one.file.name, label))
    report, found = findings.bad if spec == CUSTOM else findings.note, False
    for number, what in enumerate(("lists", "classes")):
        repeated = [copies for copies in pictures.values() if len({place[number] for place in copies.values()}) > 1]
        cases = [_describe(copies, number) for copies in repeated[:MAX_CASES]]
        if repeated:
            found = True
            report(
                f"equal pictures in two {what} under different names ({len(repeated)}): "
                f"{format_first_cases(cases, len(repeated))}"
            )
    if not found:
        findings.good("no picture is in two lists or two classes under different names")


def _describe(copies: dict[str, tuple[str, int]], number: int) -> str:
    """Return two paths of a picture whose list (number 0) or label (number 1) differs."""
    (first, place), *others = copies.items()
    second, other = next(item for item in others if item[1][number] != place[number])
    return f"{first} ({place[0]}, label {place[1]}) = {second} ({other[0]}, label {other[1]})"
