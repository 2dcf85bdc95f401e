"""The parts of every run: session, lock, watchdog, signals, events and trackers."""
