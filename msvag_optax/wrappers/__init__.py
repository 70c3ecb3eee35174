"""Wrappers that make any optax transformation bear what real parameter trees hold.

Each is one idea; `dependable` is all of them, and wraps every optimizer of this library.
"""
