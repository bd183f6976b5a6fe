"""``python -m phi4mm.serve --ray``: the same app on many replicas, placed and scaled by Ray Serve.

``front`` is what clients reach: it checks keys, origins and bounds of bodies, and keeps each request until it is
answered, so that ``relay`` can give it to another replica when its own dies. ``replica`` runs the app of a single
process in an actor; ``adapters`` keeps the adapters of all replicas the same. ``ray_replicas`` is the way from the
front to them; it and ``deploy`` alone know Ray.
"""
