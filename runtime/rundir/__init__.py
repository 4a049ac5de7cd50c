"""Run directories: their files, checkpoints and studies of several seeds."""
