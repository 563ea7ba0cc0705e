"""What both scripts share: arguments, processes, checkpoints, logs, measures, figures."""
