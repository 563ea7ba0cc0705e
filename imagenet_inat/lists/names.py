"""Names of the classes, from the made.json beside a split list."""

from pathlib import Path

from imagenet_inat.lists.known import MADE
from utils.distributed import log
from utils.errors import InputError
from utils.safe_load import are_texts, read_json


def read_class_names(list_file: Path, num_classes: int) -> list[str] | None:
    """Return the names of the classes in label order, from the made.json in the folder of a split list.

    Return None if made.json does not exist, or does not name this number of classes. A note reports an unreadable one.
    """
    record = list_file.parent / MADE
    if not record.is_file():
        return None
    try:
        names = read_json(record).get("classes")
    except InputError as error:
        log(f"note: {error}; the classes have no names")
        return None
    return names if are_texts(names) and len(names) == num_classes else None
