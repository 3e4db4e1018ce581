"""The settings of a run, one module per group; `tunerkit.config.settings.TrainConfig` joins them."""
