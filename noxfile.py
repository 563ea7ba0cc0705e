"""Run the tests with the versions that requirements.txt supports: the oldest, some in between, and the newest.

    nox -- -n auto                                            all tests, all three sets: `make test-versions`
    nox -s "tests(oldest)" -- -n auto                         all tests, oldest versions
    nox -s "tests(oldest)" -- -n auto --version-dependent     tests listed below, oldest versions: `make test-oldest`

The environments are kept in .nox, about 6 GB each. Other arguments after -- are passed to pytest.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
VERSIONS = ["oldest", "middle", "newest"]

# Folders of tests whose results depend on library versions -> what differs between versions. The other folders test
# arithmetic on tensors, our own files and command lines. Only `make test-versions` runs them with older versions.
DEPENDS_ON_VERSIONS = {
    "tests/data": "Pillow's formats and warnings, PyTorch's loader processes",
    "tests/encoders": "torchvision's and timm's networks, torch.export and ONNX, activation checkpointing",
    "tests/heads": "scikit-learn's and SciPy's solvers",
    "tests/jobs": "torch.distributed, torchrun and process groups",
    "tests/machine": "mixed precision, torch.compile, optimisers, the pinned versions themselves",
    "tests/report": "Matplotlib, TensorBoard",
    "tests/run": "torch.load and its safe types, optimiser state, tensorboard-logger with protobuf",
    "tests/targets": "NumPy's file format, SciPy's assignment",
    "tests/views": "torchvision's transforms, Pillow's resampling",
}


VERSION_DEPENDENT_FLAG = "--version-dependent"


@nox.session
@nox.parametrize("versions", VERSIONS, ids=VERSIONS)
def tests(session: nox.Session, versions: str) -> None:
    version_flags = ["--upgrade"] if versions == "newest" else ["--constraint", f"tests/versions/{versions}.txt"]
    session.install("--requirement", "requirements-dev.txt", *version_flags)
    arguments = [argument for argument in session.posargs if argument != VERSION_DEPENDENT_FLAG]
    folders = DEPENDS_ON_VERSIONS if VERSION_DEPENDENT_FLAG in session.posargs else ()
    session.run("python", "-m", "pytest", *folders, *arguments)
