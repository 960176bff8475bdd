"""What `nnUNetv2_train -num_gpus 2` does, with gloo on CPUs: `python ddp_run.py TRAINER CONFIGURATION PORT [--c]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from torch import distributed as dist

PLANS = "SAMNN_TEST_PLANS"
STOP = "SAMNN_TEST_STOP"  # "RANK:EPOCH:ITERATION": that rank alone is sent SIGTERM there


def rank_main(rank: int, trainer_name: str, configuration: str, goes_on: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    plans = os.environ.get(PLANS, "nnUNetPlans")
    trainer = get_trainer_from_args("501", configuration, 0, trainer_name, plans, goes_on)
    maybe_load_checkpoint(trainer, goes_on, False)
    if os.environ.get(STOP):
        stop_rank, epoch, iteration = map(int, os.environ[STOP].split(":"))
        step = trainer.train_step

        def with_signal(batch: dict) -> dict:
            if (rank, trainer.current_epoch, trainer.iteration_in_epoch) == (stop_rank, epoch, iteration):
                os.kill(os.getpid(), signal.SIGTERM)
            return step(batch)

        trainer.train_step = with_signal
    trainer.run_training()
    weights = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(both, weights)
    # in a file: the lines of two processes mix in one pipe
    said = {"batch": trainer.batch_size, "equal_weights": torch.equal(*both)}
    Path(os.environ["nnUNet_results"], f"rank_{rank}.json").write_text(json.dumps(said))
    trainer.perform_actual_validation(False)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3]}
    mp.spawn(rank_main, args=(sys.argv[1], sys.argv[2], "--c" in sys.argv), nprocs=2)
