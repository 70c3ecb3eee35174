"""Trees of parameters: taken apart into leaves and put together, named, and checked."""
