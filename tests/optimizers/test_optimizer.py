"""What all named optimizers share."""

import jax
import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo

OPTIMIZERS = {
    "msvag": mo.msvag(0.1),
    "expectigrad": mo.expectigrad(0.1),
    "expectigrad, dense": mo.expectigrad(0.1, sparse_counter=False),
    "novograd": mo.novograd(0.1),
    "novograd, amsgrad": mo.novograd(0.1, amsgrad=True),
    "novograd, grad_averaging": mo.novograd(0.1, grad_averaging=True),
    "amsgrad": mo.amsgrad(0.1),
    "adamw": mo.adamw(0.1),
    "bert_adamw": mo.bert_adamw(0.1, 10, 2),
    "optax.adam": optax.adam(0.1),
    "optax.sgd": optax.sgd(0.1),
}
# Where the structures agree by chance, a shape does not.
REFUSAL = r"The state is not one of this optimizer .* lacks|what the state holds for it has shape"
PAIRS = [(a, b) for a in OPTIMIZERS for b in OPTIMIZERS if a != b and not a.startswith("optax")]


@pytest.fixture
def params():
    return {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_the_state_of_another_optimizer_is_refused_in_words(params, name, other):
    state = OPTIMIZERS[other].init(params)
    for update in (OPTIMIZERS[name].update, jax.jit(OPTIMIZERS[name].update)):
        with pytest.raises(ValueError, match=REFUSAL):
            update(params, state, params)


def test_the_message_names_what_is_missing_and_what_is_foreign(params):
    with pytest.raises(
        ValueError, match=r"it lacks 'links/direction/inner_states.* and has 'links/direction/adam"
    ):
        mo.msvag(0.1).update(params, mo.bert_adamw(0.1, 10, 2).init(params), params)


def test_a_state_that_lost_its_types_is_refused_in_words(params):
    """As some checkpoints are when they are restored without a target."""
    tx = mo.msvag(0.1)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"lost its types \(it is a dict"):
        tx.update(params, state._asdict(), params)


def test_gradients_that_are_all_none_need_the_parameters():
    tx = mo.msvag(0.1)
    with pytest.raises(ValueError, match="pass `params` to `update`"):
        tx.update({"w": None}, tx.init({"w": jnp.ones(2)}))


def test_other_errors_are_left_alone(params):
    tx = mo.adamw(0.1)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))


@pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
@pytest.mark.parametrize(
    ("schedule", "got"),
    [(lambda count: None, "None"), (lambda count: jnp.ones(2), r"an array of shape \(2,\)")],
)
def test_a_schedule_that_returns_no_number_is_refused_by_name(params, argument, schedule, got):
    tx = mo.adamw(**({"learning_rate": 0.1} | {argument: schedule}))
    with pytest.raises(
        TypeError, match=f"`{argument}` must be a schedule that returns a number, got {got}"
    ):
        tx.update(params, tx.init(params), params)


def test_the_state_of_an_optimizer_is_no_state_of_nothing(params):
    with pytest.raises(ValueError, match="lacks 'count' and 6 more and has 'NoneType'"):
        mo.msvag(0.1).update(params, None, params)


def by_chance(tx):
    return mo.kept_in(tx, jnp.bfloat16, "stochastic")


WRAPPERS = {
    "nothing": lambda tx: tx,
    "chain": lambda tx: mo.chain(optax.clip(1.0), tx),
    "dependable": mo.dependable,
    "lazy_rows": mo.lazy_rows,
    "kept_in": lambda tx: mo.kept_in(tx, jnp.bfloat16),
    "kept_in by chance": by_chance,
    "rounded_parameters": mo.rounded_parameters,
    "master_copy": mo.master_copy,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_an_optimizer_is_no_direction(wrap):
    """Its updates point downhill; made steps of once more, they would go uphill without a word."""
    with pytest.raises(TypeError, match="`direction` must point uphill, and got an optimizer"):
        mo.optimizer(wrap(mo.msvag(0.1)), 0.1)


@pytest.mark.parametrize("name", ["kept_in by chance", "rounded_parameters"])
def test_what_draws_does_not_count(name):
    """So that the one `count` of an optimizer is still found."""
    params = jnp.ones(3, jnp.bfloat16)
    tx = WRAPPERS[name](mo.msvag(0.1))
    _, state = tx.update(params, tx.init(params), params)
    assert optax.tree.get(state, "count") == state.draws == 1
