"""Freezes what `pytorch_optimizer` computes: `python -m tests.gallery.freeze`.

Needs `pip install torch pytorch_optimizer`, and of this project nothing but NumPy. What it writes
is data of the tests, which need neither.
"""

import importlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tests.gallery.gradients import KEPT, RATE, STEPS, gradients, parameters

FOLDER = Path(__file__).parent
PACKAGES = ("pytorch_optimizer", "torch")

# The name in the gallery: the class, its arguments, and the scale of the gradients. LaProp adds
# 1e-15 under the root of a mean of squares, and this is nothing beside large gradients.
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "laprop": ("LaProp", {"eps": 1e-15, "foreach": False}, 1e6),
    "tiger": ("Tiger", {}, 1.0),
    "grams": ("Grams", {"eps": 1e-8}, 1.0),
    "cautious_adam": (
        "AdEMAMix",  # which is Adam without its slow mean
        {"alpha": 0.0, "weight_decay": 0.0, "eps": 1e-8, "cautious": True, "foreach": False},
        1.0,
    ),
}


def freeze(torch: Any, kind: Any, arguments: dict[str, Any], scale: float) -> dict[str, Any]:
    """Some of the updates of parameters that stay where they are, and the bytes of the state."""
    start = parameters()
    params = {name: torch.tensor(p, requires_grad=True) for name, p in start.items()}
    optimizer = kind(params.values(), lr=RATE, **arguments)
    stream = gradients(scale)
    updates: dict[str, list[np.ndarray]] = {name: [] for name in params}
    for step in range(STEPS):
        for name, param in params.items():
            param.data = torch.tensor(start[name])
            param.grad = torch.tensor(stream[name][step])
        optimizer.step()
        for name, param in params.items():
            updates[name].append(param.detach().numpy() - start[name])
    tensors = [x for s in optimizer.state.values() for x in s.values() if torch.is_tensor(x)]
    bytes_of_state = sum(x.numel() * x.element_size() for x in tensors)
    frozen = {name: np.stack(steps)[KEPT] for name, steps in updates.items()}
    return {"updates": frozen, "bytes": bytes_of_state}


def main() -> None:
    """Writes the updates, and what they are of."""
    # Nobody else needs them: the type checker does not have to find them.
    pytorch_optimizer, torch = map(importlib.import_module, PACKAGES)
    arrays, manifest = {}, {}
    for name, (kind, arguments, scale) in CASES.items():
        frozen = freeze(torch, getattr(pytorch_optimizer, kind), arguments, scale)
        arrays |= {f"{name}/{leaf}": path for leaf, path in frozen["updates"].items()}
        manifest[name] = {
            "reference": f"pytorch_optimizer.{kind}",
            "arguments": arguments,
            "scale": scale,
            "bytes": frozen["bytes"],
        }
    versions = {name: metadata.version(name) for name in PACKAGES}
    np.savez_compressed(FOLDER / "pytorch_optimizer.npz", **arrays)
    text = json.dumps({"versions": versions, "cases": manifest}, indent=1)
    (FOLDER / "pytorch_optimizer.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
