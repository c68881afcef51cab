"""Where pictures are made, each place behind one protocol (`base`). No torch here."""
