"""What protects the server from what callers send: the guarded way out, and pictures made harmless."""
