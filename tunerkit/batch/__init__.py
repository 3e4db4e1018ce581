"""One notebook, many settings: sweeps through papermill, and their results.

    result = tk.sweep("notebooks/sana_video.ipynb", grid={"learning_rate": [1e-4, 3e-4]}, output_dir="sweeps/lr")
    result.to_dataframe()

Papermill and pandas are imported where they are needed.
"""

from __future__ import annotations

from tunerkit.batch.detached import start_sweep, stop_sweep, sweep_goes_on
from tunerkit.batch.plan import Parameter, RunPlan, SweepPlan, notebook_parameters, plan_sweep
from tunerkit.batch.results import SweepResult, SweepRow, read_sweep
from tunerkit.batch.runner import sweep

__all__ = [
    "Parameter",
    "RunPlan",
    "SweepPlan",
    "SweepResult",
    "SweepRow",
    "notebook_parameters",
    "plan_sweep",
    "read_sweep",
    "start_sweep",
    "stop_sweep",
    "sweep",
    "sweep_goes_on",
]
