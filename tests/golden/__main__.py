"""Prints how far the library is from each reference: `python -m tests.golden`."""

import jax

from tests.golden import cases


def main() -> None:
    """Prints a row a case, in the order of the manifest."""
    jax.config.update("jax_platforms", "cpu")
    print("| case | reference | largest deviation / its bound |")
    print("| --- | --- | --- |")
    for case in cases.MANIFEST:
        if case["optimizer"] == "bert_lr_schedule":
            fraction = cases.schedule_fraction(case)
        else:
            fraction = cases.worst_fraction(case, cases.build(case))
        print(f"| {case['file'].removesuffix('.npz')} | {case['optimizer']} | {fraction:.3f} |")


if __name__ == "__main__":
    main()
