"""Fast operations, one file per operation: the readable reference, the torch twin, the native path and what they share.

Kernels belong to no technique: a technique calls them by name. Which implementation runs is decided in one visible
place, :mod:`leanconv.kernels.choice`, and the decision never changes the bits of :mod:`leanconv.kernels.philox`.
"""
