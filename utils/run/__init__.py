"""A living run: its arguments, processes, state, folder, log and arithmetic."""
