"""Run stage 1 in two processes under torchrun's agent, forking them instead of starting Python again.

python -m tests.jobs.elastic RESTARTS FLAGS
"""

import sys

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import main_moco_supcon_imba as stage1
from utils import errors


def work(*flags: str) -> None:
    errors.run(lambda: stage1.main(list(flags)))


if __name__ == "__main__":
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "tests", "monitor_interval": 0.1}
    config = LaunchConfig(1, 1, 2, start_method="fork", max_restarts=int(sys.argv[1]), **options)
    elastic_launch(config, work)(*sys.argv[2:])
