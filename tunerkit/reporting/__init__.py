"""Telling others about a run: trackers, webhooks, the hub. None of them can end a training or hold it up."""
