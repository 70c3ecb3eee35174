"""Wrappers that make any optax transformation work on real parameter trees.

Each is one idea; `dependable` is all of them, and wraps every optimizer of this library.
"""
