"""Prints the gallery's table: `python -m tests.gallery > tests/gallery/table.md`."""

import jax

from tests.gallery.cases import BOUND, CASES, compare


def main() -> None:
    """A row for each optimizer."""
    jax.config.update("jax_platforms", "cpu")
    print("| optimizer | lines | compared with | largest difference | bytes of state | theirs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        row = compare(name)
        note = f" ({case.why})" if case.bound > BOUND else ""
        print(
            f"| `{name}` | {row.lines} | {row.reference} | {row.difference:.1e}{note} "
            f"| {row.ours} | {row.theirs} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
