"""How it is run: config, optimiser, loop, checkpoints, evaluation, pictures, report and the command line.

Only this package reads configuration or the environment and writes run directories. Nothing imports it.
Reading order: config, stages, loop, checkpoint, optim, processes, rundir; then probe, pictures, report.
"""
