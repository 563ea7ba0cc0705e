"""Training runs: arguments, processes, state, run folder, log and numeric precision."""
