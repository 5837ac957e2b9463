"""Runs a trained network from one file, with numpy and the native library: no torch."""
