"""The runtime: search, training, data, checkpoints, run directories, reports."""
