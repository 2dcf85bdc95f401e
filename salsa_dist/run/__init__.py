"""What every run stands on, whatever it does: its lock, watchdog, signals, events and trackers."""
