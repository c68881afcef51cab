"""The brain of the gateway: which places can serve a request, and in which order. Pure: nothing here does I/O or waits.

`asked` what is wanted → `candidates` who can do it, and what would be lost → `predict` how long → `policy` what counts →
`rules` the operator's own → `decision` all of it in one value that can be kept and explained → `replay` what other
policies would have done.
"""
