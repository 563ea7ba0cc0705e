"""Run the tests on the versions that requirements.txt promises: the lowest, some between, and the newest.

    nox -- -n auto                                            every test on all three: `make test-versions`
    nox -s "tests(oldest)" -- -n auto                         every test on the lowest
    nox -s "tests(oldest)" -- -n auto --version-dependent     the tests listed below: `make test-oldest`

The environments stay in .nox, about 6 GB each. Other arguments after -- go to pytest.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
VERSIONS = ["oldest", "middle", "newest"]

# The tests of code whose behaviour depends on the version of a library, and what differs between versions. The others
# test arithmetic on tensors, our own files and command lines; `make test-versions` runs them too.
DEPENDS_ON_VERSIONS = {
    "tests/data": "Pillow's formats and warnings, PyTorch's loader processes",
    "tests/encoders": "torchvision's and timm's networks, torch.export and ONNX, activation checkpointing",
    "tests/heads": "scikit-learn's and SciPy's solvers",
    "tests/jobs": "torch.distributed, torchrun and process groups",
    "tests/machine": "mixed precision, torch.compile, optimisers, the pinned versions themselves",
    "tests/report": "Matplotlib, TensorBoard",
    "tests/run": "torch.load and its safe types, optimiser state, tensorboard-logger beside protobuf",
    "tests/targets": "NumPy's file format, SciPy's assignment",
    "tests/views": "torchvision's transforms, Pillow's resampling",
}


ONLY = "--version-dependent"


@nox.session
@nox.parametrize("versions", VERSIONS, ids=VERSIONS)
def tests(session: nox.Session, versions: str) -> None:
    pins = ["--upgrade"] if versions == "newest" else ["--constraint", f"tests/versions/{versions}.txt"]
    session.install("--requirement", "requirements-dev.txt", *pins)
    words = [word for word in session.posargs if word != ONLY]
    session.run("python", "-m", "pytest", *(DEPENDS_ON_VERSIONS if ONLY in session.posargs else ()), *words)
