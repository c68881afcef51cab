"""Adapters: what is added to a transformer's linear layers, read from files of every spelling, kept by name, applied by row."""
