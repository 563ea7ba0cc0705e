"""`class_names` reads the names of the classes beside a list."""

from imagenet_inat.lists.known import class_names
from imagenet_inat.splits import __main__ as splits
from tests.splits.test_folders import touch


def test_names_are_in_label_order_or_unknown(tmp_path):
    source, lists = touch(tmp_path / "images", {"zebra": 4, "Ant": 5, "10": 4, "2": 4}), tmp_path / "lists"
    splits.main(["make", str(source), "--output", str(lists)])
    names = class_names(lists / "custom_val.txt", 4)
    assert names == ["10", "2", "Ant", "zebra"]
    for line in (lists / "custom_train.txt").read_text().splitlines():
        path, label = line.split()
        assert path.split("/")[0] == names[int(label)]
    assert class_names(lists / "custom_val.txt", 5) is None  # the record of another data set
    assert class_names(lists / "shorter.txt", 4) == names  # a list of one's own, in the same folder
    (lists / "made.json").write_text("damaged")
    assert class_names(lists / "custom_val.txt", 4) is None
