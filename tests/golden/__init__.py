"""Trajectories computed by the reference packages, and how this library reproduces each."""
