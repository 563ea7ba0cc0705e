"""Training runs: plan, state, checkpoints, run folder, log, schedule and numeric precision."""
