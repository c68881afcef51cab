"""What `gateway.py` measures with: the bodies, the fake provider, the generator of load, and the gateways."""
