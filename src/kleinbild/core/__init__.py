"""Values: requests, sizes, records and errors. No I/O, no torch; every other package may import this one."""
