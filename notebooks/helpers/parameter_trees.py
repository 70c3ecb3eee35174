"""Trees of parameters of well-known networks, of which only the shapes are there."""

import jax
import jax.numpy as jnp


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _dense(inputs: int, outputs: int) -> dict:
    return {"kernel": _array(inputs, outputs), "bias": _array(outputs)}


def _norm(width: int) -> dict:
    return {"scale": _array(width), "bias": _array(width)}


def _convolution(size: int, inputs: int, outputs: int) -> dict:
    return {"kernel": _array(size, size, inputs, outputs), "norm": _norm(outputs)}


def resnet50() -> dict:
    """The shapes of its parameters."""
    tree, inputs = {"stem": _convolution(7, 3, 64)}, 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            tree[f"stage_{stage}/block_{block}"] = {
                "reduce": _convolution(1, inputs, width),
                "mix": _convolution(3, width, width),
                "expand": _convolution(1, width, 4 * width),
            } | ({} if block else {"shortcut": _convolution(1, inputs, 4 * width)})
            inputs = 4 * width
    return tree | {"head": _dense(inputs, 1000)}


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50_257, context: int = 1024) -> dict:
    """The shapes of the parameters of the small one."""
    block = {
        "attention_norm": _norm(width),
        "queries_keys_values": _dense(width, 3 * width),
        "attention_out": _dense(width, width),
        "mlp_norm": _norm(width),
        "mlp_in": _dense(width, 4 * width),
        "mlp_out": _dense(4 * width, width),
    }
    embeddings = {"tokens": _array(vocabulary, width), "positions": _array(context, width)}
    return embeddings | {f"block_{i}": block for i in range(layers)} | {"norm": _norm(width)}
