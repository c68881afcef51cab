"""How much may be used: the counters of callers' rates and of what each provider allows."""
