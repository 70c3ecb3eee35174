"""The public contract: names, signatures and the documentation that every public name owes."""

import inspect
import re

import optax
import pytest

import msvag_optax as mo
from docs import api_reference

# What users may write, argument by argument: a change here breaks somebody's training script.
DTYPES = "mu_dtype=None, nu_dtype=None"
DECAY = f"weight_decay=0.0, exclude_from_weight_decay=(), {DTYPES}"
SIGNATURES = {
    "adamw": "(learning_rate, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.01, *,"
    f" bias_correction=True, exclude_from_weight_decay=(), {DTYPES})",
    "amsgrad": "(learning_rate, b1=0.9, b2=0.999, eps=1e-08, *, bias_correction=True,"
    f" correct_before_max=False, {DECAY})",
    "arithmetic": "()",
    "batch_variance": "()",
    "bert_adamw": "(init_lr, num_train_steps, num_warmup_steps, *, weight_decay=0.01, b1=0.9,"
    " b2=0.999, eps=1e-06, exclude_from_weight_decay=('LayerNorm', 'layer_norm', 'bias'),"
    " max_grad_norm=1.0)",
    "expectigrad": f"(learning_rate, beta=0.9, eps=1e-08, sparse_counter=True, *, {DECAY})",
    "exponential": "(decay)",
    "exponential_from_first": "(decay)",
    "exponential_from_zero": "(decay)",
    "from_estimates": "(formula, **estimators)",
    "lazy_rows": "(tx)",
    "msvag": f"(learning_rate, beta=0.9, *, {DECAY})",
    "novograd": "(learning_rate, b1=0.9, b2=0.999, eps=1e-07, weight_decay=0.0, *,"
    " grad_averaging=False, amsgrad=False, eps_root=0.0, stacked=(),"
    f" exclude_from_weight_decay=(), {DTYPES})",
    "svag": f"(learning_rate, beta=0.9, *, {DECAY})",
    "variance_adapted": f"(direction, beta=0.9, *, of_mean=False, {DTYPES})",
    "warmup_linear_decay_schedule": "(init_lr, num_train_steps, num_warmup_steps)",
}
# Here more keyword-only arguments may follow the promised ones.
BEGINNINGS = {
    "running_average": "(weighting, of=None, count_nonzero=False",
    "running_max": "(estimator",
    "running_moments": "(weighting",
    "watch_noise": "(weighting",
    "noise_scale": "(state",
    "signal_to_noise": "(state",
}
OPTIMIZERS = ["adamw", "amsgrad", "expectigrad", "msvag", "novograd", "svag"]
NAMES = api_reference.public_names()
FUNCTIONS = [name for name in NAMES if inspect.isroutine(inspect.unwrap(getattr(mo, name)))]


def spelled(function) -> str:
    """The signature without its annotations."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))


def docstring(name: str) -> str:
    return inspect.getdoc(getattr(mo, name)) or ""


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_promised_one(name):
    assert spelled(getattr(mo, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", BEGINNINGS)
def test_signature_begins_as_promised(name):
    begun = spelled(getattr(mo, name)).removeprefix(BEGINNINGS[name])
    assert begun.startswith((", *, ", ")"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_takes_a_number_or_a_schedule(name):
    # The annotation is how optax's own test suite finds the arguments that take schedules. It has
    # to be the object itself: `from __future__ import annotations` would make a string of it.
    annotation = inspect.signature(getattr(mo, name)).parameters["learning_rate"].annotation
    assert annotation is optax.ScalarOrSchedule


@pytest.mark.parametrize("name", [*OPTIMIZERS, "bert_adamw", "variance_adapted", "lazy_rows"])
def test_transformation_takes_extra_arguments(name):
    annotation = inspect.signature(getattr(mo, name)).return_annotation
    assert annotation is optax.GradientTransformationExtraArgs


def test_all_that_is_public_is_ours():
    foreign = [
        name for name in NAMES if not getattr(mo, name).__module__.startswith("msvag_optax.")
    ]
    assert foreign == []


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_documented(name):
    text = docstring(name)
    first = text.splitlines()[0] if text else ""
    assert first.endswith((".", ":")), f"{name} needs a docstring that starts with a sentence"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_documents_arguments_result_and_an_example(name):
    text = docstring(name)
    signature = inspect.signature(getattr(mo, name))
    missing = [p.name for p in signature.parameters.values() if f"{p.name}:" not in text]
    assert missing == [], f"{name} says nothing of {missing}"
    if signature.parameters:
        assert "\nArgs:\n" in text
    if signature.return_annotation is not None:
        assert "\nReturns:\n" in text
    assert ">>> " in text, f"{name} shows no example"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_is_fully_annotated(name):
    signature = inspect.signature(getattr(mo, name))
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert bare == []
    assert signature.return_annotation is not signature.empty


def test_public_name_is_in_the_api_reference():
    reference = "".join(api_reference.pages().values())
    documented = re.findall(r"^\.\. auto(?:class|function):: msvag_optax\.(\w+)$", reference, re.M)
    assert sorted(documented) == sorted(NAMES)


@pytest.mark.parametrize("part", api_reference.PARTS, ids=lambda part: part.__name__)
def test_the_demo_is_in_the_api_reference(part):
    reference = api_reference.pages()[part.__name__.removeprefix("msvag_optax.")]
    names = api_reference.part_names(part)
    assert names
    assert all(f":: {part.__name__}.{name}\n" in reference for name in names)


@pytest.mark.parametrize("name", ["compare", "problems", "testing"])
def test_a_module_of_its_own_is_imported_by_its_name(name):
    # It is an attribute as soon as anybody has imported it.
    with pytest.raises(AttributeError, match=f"Use `import msvag_optax.{name}`"):
        mo.__getattr__(name)
