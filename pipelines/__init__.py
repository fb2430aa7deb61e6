"""How it is run: config, optimiser, loop, checkpoints, evaluation, pictures, report and the command line.

Only this package reads configuration or the environment and writes run directories. Nothing imports it.
Reading order: config, stages, loop, checkpoint, optim, processes, rundir; then probe, pictures, report.
"""

import os

# Between two pieces of work the threads of GNU's OpenMP, which torch brings, spin 300,000 times. Where
# anything else wants the cores, a loader process or a second training, each then waits for one that is not
# running: two trainings on two cores went at a tenth of their speed. torch reads this as it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
