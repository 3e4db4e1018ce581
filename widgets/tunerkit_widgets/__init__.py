"""Forms and views for notebooks, over tunerkit's public calls.

    import tunerkit_widgets as tw

    form = tw.SetupForm("my-project/config.json")
    clips = tw.DatasetBrowser(form.config)
    run = tk.start(form.config)
    await tw.follow(run)
    tw.ValidationGallery(run)

Where nobody can click (papermill, `nbconvert --execute`), the same calls draw no widgets: they print a few lines, wait
until the work is done, leave static pictures and players, and raise on failure.
"""

from tunerkit_widgets.cache_progress import CacheProgress
from tunerkit_widgets.checkpoint_browser import CheckpointBrowser
from tunerkit_widgets.dashboard import TrainingDashboard, follow, follow_blocking
from tunerkit_widgets.dataset_browser import DatasetBrowser
from tunerkit_widgets.evaluation_view import show_evaluation
from tunerkit_widgets.gallery import ValidationGallery
from tunerkit_widgets.history import TrainingHistory, smoothed, tenths
from tunerkit_widgets.loss_plot import loss_png
from tunerkit_widgets.methods_view import show_methods
from tunerkit_widgets.plan_view import show_plan
from tunerkit_widgets.projects import guided_form, new_project
from tunerkit_widgets.run_list import RunList
from tunerkit_widgets.setup_form import SetupForm
from tunerkit_widgets.sounds import show_sound
from tunerkit_widgets.summary import Summary, show_files, summarize
from tunerkit_widgets.surroundings import headless, quiet_libraries
from tunerkit_widgets.sweep_launcher import SweepLauncher
from tunerkit_widgets.sweep_table import SweepTable
from tunerkit_widgets.texts import choose_language
from tunerkit_widgets.videos import show_videos

__all__ = [
    "CacheProgress",
    "CheckpointBrowser",
    "DatasetBrowser",
    "RunList",
    "SetupForm",
    "Summary",
    "SweepLauncher",
    "SweepTable",
    "TrainingDashboard",
    "TrainingHistory",
    "ValidationGallery",
    "choose_language",
    "follow",
    "follow_blocking",
    "guided_form",
    "headless",
    "loss_png",
    "new_project",
    "quiet_libraries",
    "show_evaluation",
    "show_files",
    "show_methods",
    "show_plan",
    "show_sound",
    "show_videos",
    "smoothed",
    "summarize",
    "tenths",
]
