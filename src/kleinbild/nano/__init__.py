"""The embedded model: its weights, and the small world that it was trained on (`kleinbild.nano.scenes`)."""
