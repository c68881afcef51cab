"""What outlives the process: one database, one blob store. No torch, no HTTP."""
