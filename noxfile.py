"""The tests on the versions that requirements.txt promises: its lowest, some between, and the newest there are.

    nox -s "tests(oldest)" -- -n auto     what `make test-oldest` does
    nox -- -n auto                        all three: `make test-versions`

The environments stay in .nox, about 6 GB each. Arguments after -- are pytest's.
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
VERSIONS = ["oldest", "middle", "newest"]


@nox.session
@nox.parametrize("versions", VERSIONS, ids=VERSIONS)
def tests(session: nox.Session, versions: str) -> None:
    chosen = ["--upgrade"] if versions == "newest" else ["--constraint", f"tests/versions/{versions}.txt"]
    session.install("--requirement", "requirements-dev.txt", *chosen)
    session.run("python", "-m", "pytest", *session.posargs)
