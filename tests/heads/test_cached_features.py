"""Cached features are not used for edited images, and are stored where it is possible."""

import shutil

import torch
from PIL import Image
from safetensors.torch import load_file

import main_lincls_imba as stage2
from tests import three


def test_features_of_images_edited_in_place_are_recomputed(tmp_path, monkeypatch, words):
    three.register(monkeypatch)
    (tmp_path / "data").mkdir()
    folder = three.write(tmp_path / "data")
    shutil.copy(words[-1], tmp_path / "last.pth.tar")
    flags = f"--dataset three --data-root {folder} --splits {folder} -j 0 -b 8 --device cpu --head ncm --resume auto"
    features = []
    for _ in range(2):
        stage2.main([*flags.split(), "--pretrained", str(tmp_path / "last.pth.tar")])
        features.append(load_file(tmp_path / "features_last" / "val.safetensors")["features"])
        for path in folder.glob("*.png"):
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    assert not torch.equal(*features)


def test_features_are_stored_in_the_run_folder_if_the_folder_of_the_checkpoint_is_unusable(tmp_path, words):
    (tmp_path / "checkpoint").mkdir()
    checkpoint = str(shutil.copy(words[-1], tmp_path / "checkpoint" / "last.pth.tar"))
    (tmp_path / "checkpoint" / "features_last").touch()  # a file: the folder of the features cannot be created
    stage2.main([*words[:-1], checkpoint, "--head", "ncm", "--run-dir", str(tmp_path / "run")])
    assert len([*(tmp_path / "run" / "features_last").iterdir()]) == 3
