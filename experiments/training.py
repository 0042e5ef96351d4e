"""One loop for every task: seeds outside, `lax.scan` over steps inside, host code between chunks of steps.

A task is three pure functions. `make_train` turns them into the training of one seed, `side_by_side` into two jitted
programs for many: `advance` runs one chunk of steps of all, `evaluate` measures them. The key of step i is
`fold_in(seed key, i)`, so a run that was cut into chunks, stopped and continued draws what an unbroken one draws.

Accelerators train all runs of a program at once, by `vmap`; CPUs one after another, by `lax.map`, faster there:
with a kernel per run a convolution becomes one of groups, and the activations of one run fit the caches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, final

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.meshes import place

OF_STEPS = ("steps", "chunk_steps")  # keys of a config of a task with steps
OF_CLASSIFIER = ("classifier_steps", "classifier_seed")  # of one that compares features
OF_DATA = ("data", *OF_CLASSIFIER)
State = Any
Scalars = dict[str, jax.Array]
Arrays = dict[str, jax.Array]


class Task(NamedTuple):
    """What a task must know how to do; the loop knows nothing else about it."""

    init: Callable[[jax.Array], State]
    # Draws its batch from the key; None in a task that only measures.
    step: Callable[[State, jax.Array], tuple[State, Scalars]] | None
    # (state, key) -> metrics, and what pictures need
    evaluate: Callable[[State, jax.Array], tuple[Scalars, Arrays]]
    # Key of a step -> numbers of the records that `step` reads with it; only streamed sets need it.
    draw: Callable[[jax.Array], jax.Array] | None = None


class Shared(NamedTuple):
    """What the setting of every task has; a task without data has nothing else, and these are empty."""

    real: dict[str, float]  # metrics of real data
    arrays: dict[str, Any]  # of real data, for pictures
    notes: dict[str, float]


class Data(NamedTuple):
    """What a task makes of the data set of a config, a `Split`."""

    # (split, options) -> what all variants share, a pytree with the fields of `Shared`; its options have the values of
    # `Kind.shared`, and defaults. With `classifies` it takes classifier_steps= and seed=, too.
    prepare: Callable[..., Any]
    # (split, options of a variant) -> what is wrong with the options for these data, before anything is compiled;
    # raises ValueError if none go with them
    check: Callable[[Any, Any], list[str]]
    classifies: bool = False  # quality metrics compare the features of a classifier

    def setting(self, split: Any, options: Any, **of_classifier: int) -> Any:
        """Returns what all variants share."""
        return self.prepare(split, options, **(of_classifier if self.classifies else {}))


_NO_DATA = Data(lambda split, options: Shared({}, {}, {}), lambda split, options: [])  # noqa: ARG005


@dataclass(frozen=True, eq=False, kw_only=True)
class _Family:
    """What both kinds of tasks have: a family of tasks that differ in their options.

    Options with `metadata=traced(..)` may be arrays inside of a task: one program serves all their values, and variants
    that differ in them alone are trained side by side, as seeds are.
    """

    # A frozen dataclass; its `errors()`, if any, returns what no single field can know.
    options: type
    metrics: tuple[str, ...]  # names that claims may use; every evaluation returns all of them
    shared: frozenset[str] = frozenset()  # options that no variant may change
    curves: Mapping[str, str]  # metrics that the report draws, with their titles
    panels: str = ""  # title of a picture with the array `panel`, (height, width), of every variant's evaluation
    # Options of a variant -> metrics that its evaluations have not.
    lacking: Callable[[Any], frozenset[str]] = lambda _: frozenset()


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Measures(_Family):
    """The kind of a task that only measures: no steps, no data, one evaluation of every seed."""

    measure: Callable[[Any, jax.Array], tuple[Scalars, Arrays]]  # (options, key)

    data = _NO_DATA
    networks: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()  # keys of a config
    refused: ClassVar[Mapping[str, str]] = {  # keys of a config, and why
        **dict.fromkeys(OF_DATA, "takes no data"),
        **dict.fromkeys(OF_STEPS, "only measures"),
    }

    def make_task(self, options: Any, setting: Any, steps: int) -> Task:
        """Returns a task whose state is nothing."""
        del setting, steps
        nothing = lambda key: jnp.zeros(())  # noqa: ARG005  # checkpoints need an array
        return Task(nothing, None, lambda state, key: self.measure(options, key))  # noqa: ARG005

    def ends(self, steps: int) -> dict[str, int]:
        """Returns the steps that claims are about, by name."""
        return {"final": steps}


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Trains(_Family):
    """The kind of a task with steps: it trains networks on data, or iterates without either."""

    make_task: Callable[..., Task]  # (options, what `data.prepare` returned, steps)
    networks: tuple[str, ...] = ()  # parts of a state that are trained
    data: Data = _NO_DATA

    required: ClassVar[tuple[str, ...]] = OF_STEPS  # keys of a config

    @property
    def refused(self) -> Mapping[str, str]:
        """Keys of a config, and why."""
        if self.data is _NO_DATA:
            return dict.fromkeys(OF_DATA, "takes no data")
        return {} if self.data.classifies else dict.fromkeys(OF_CLASSIFIER, "takes no classifier")

    def ends(self, steps: int) -> dict[str, int]:
        """Returns the steps that claims are about, by name."""
        return {"init": 0, "final": steps}


Kind = Measures | Trains  # what a file in `experiments.tasks` offers


def traced(names: Mapping[str, Any] | None = None, **limits: float) -> dict[str, Any]:
    """Returns the metadata of an option that does not change a program's structure.

    Args:
      names: what the names stand for that the option may have; without them the option is a number.
      **limits: of numbers.
    """
    return {"traced": True, "names": names, **limits}


def graph_of(build: Callable[[nnx.Rngs], nnx.Module]) -> Any:
    """Returns the structure of a module, without drawing its weights."""
    return nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


class Length(NamedTuple):
    """What `make_train` needs of a config."""

    steps: int  # per seed
    chunk_steps: int  # between two visits of the host


@dataclass(frozen=True)
class Train:
    """The run of one seed: `train(key)` all at once, or in pieces with the host in between."""

    init: Callable[[jax.Array], State]  # key -> state
    # (state, key, first step) -> state after a chunk, scalars of its steps
    advance: Callable[[State, jax.Array, Any], tuple[State, Scalars]]
    evaluate: Callable[[State, jax.Array], tuple[Scalars, Arrays]]  # (state, key)
    draw: Callable[[jax.Array, Any], jax.Array]  # (key, first step) -> what a chunk reads
    chunks: int

    def __call__(self, key: jax.Array) -> tuple[State, Scalars]:
        """Returns the last state and the scalars of all steps."""

        def chunk(carry: tuple[State, jax.Array], _: None) -> tuple[Any, Scalars]:
            state, first = carry
            state, log = self.advance(state, key, first)
            return (state, first + len(jax.tree.leaves(log)[0])), log

        start = (self.init(key), jnp.zeros((), int))
        (state, _), log = jax.lax.scan(chunk, start, length=self.chunks)
        return state, jax.tree.map(jnp.concatenate, log)


def make_train(task: Task, config: Any) -> Train:
    """Returns the training of a task; `vmap` or `lax.map` it for several seeds.

    Args:
      task: pure functions.
      config: with `steps` and `chunk_steps`, which divides it.
    """

    def init(key: jax.Array) -> State:
        return task.init(jax.random.fold_in(key, 0))

    def key_of(key: jax.Array, step: Any) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, 1), step)

    def advance(state: State, key: jax.Array, first: Any) -> tuple[State, Scalars]:
        steps = first + jnp.arange(config.chunk_steps)
        one = task.step
        assert one is not None
        state, log = jax.lax.scan(lambda s, i: one(s, key_of(key, i)), state, steps)
        chex.assert_shape(jax.tree.leaves(log), (config.chunk_steps,))  # one number per step
        return state, log

    def draw(key: jax.Array, first: Any) -> jax.Array:
        one = task.draw
        assert one is not None
        return jax.vmap(lambda i: one(key_of(key, i)))(first + jnp.arange(config.chunk_steps))

    def evaluate(state: State, key: jax.Array) -> tuple[Scalars, Arrays]:
        scalars, arrays = task.evaluate(state, jax.random.fold_in(key, 2))
        chex.assert_rank(jax.tree.leaves(scalars), 0)
        return scalars, arrays

    return Train(init, advance, evaluate, draw, config.steps // config.chunk_steps)


class SideBySide(NamedTuple):
    """Runs that differ in their seeds and in traced options, in one program; everything is stacked over them."""

    init: Callable[[Any, jax.Array], State]  # (setting, keys) -> states
    # (setting, traced options, states, keys, first step); takes the states with it
    advance: Callable[..., tuple[State, Scalars]]
    evaluate: Callable[..., tuple[Scalars, Arrays]]  # (setting, traced options, states, keys)
    draw: Callable[..., jax.Array]  # (setting, keys, first step) -> what the chunks read


def structure(options: Any) -> Any:
    """Returns options with the traced ones at 0: equal for all that share a program."""
    return replace(options, **{f.name: 0.0 for f in fields(options) if f.metadata.get("traced")})


def traced_options(options: Sequence[Any]) -> dict[str, jax.Array]:
    """Returns the traced options of several runs, stacked; names as what they stand for."""

    def values(f: Any) -> list[Any]:
        found = [getattr(o, f.name) for o in options]
        names = f.metadata["names"]
        return found if names is None else [names[name] for name in found]

    known = [f for f in fields(options[0]) if f.metadata.get("traced")]
    return {f.name: jnp.array(values(f), float) for f in known}


def count_parameters(kind: Kind, options: Any, setting: Any) -> dict[str, int]:
    """Returns how many numbers each network of a run trains."""
    state = jax.eval_shape(kind.make_task(options, setting, 1).init, jax.random.key(0))
    sizes = {name: jax.tree.leaves(getattr(state, name)) for name in kind.networks}
    return {name: sum(leaf.size for leaf in leaves) for name, leaves in sizes.items()}


@functools.lru_cache(maxsize=32)
def side_by_side(
    make_task: Callable[[Any, Any, int], Task],
    options: Any,
    length: Length,
    mesh: Mesh | None = None,
    *,
    vmapped: bool | None = None,
) -> SideBySide:
    """Returns the program of a structure, compiled once for all of its runs in this process.

    Args:
      make_task: of a `Kind`.
      options: as `structure` returns them.
      length: of the training.
      mesh: on which the arguments lie, as `meshes.place` puts them: the setting whole, the rest along `seeds`.
      vmapped: whether a device trains its runs all at once, not one after another; None for everywhere but on CPUs.
    """
    at_once = jax.default_backend() != "cpu" if vmapped is None else vmapped
    of_runs, whole = (
        (None, None)
        if mesh is None
        else (NamedSharding(mesh, P("seeds")), NamedSharding(mesh, P()))
    )

    def train(setting: Any, traced: dict[str, Any]) -> Train:
        return make_train(make_task(replace(options, **traced), setting, length.steps), length)

    def each(program: Callable[..., Any]) -> Callable[..., Any]:
        """Gives every device along `seeds` its own runs; the first argument is for all."""
        if mesh is None:
            return program
        specs = {"in_specs": (P(), *[P("seeds")] * 3), "out_specs": P("seeds")}
        return jax.shard_map(program, mesh=mesh, axis_names={"seeds"}, check_vma=False, **specs)

    def init(setting: Any, keys: jax.Array) -> State:
        # Not jitted: the initializers are compiled once for all structures, not once for each.
        states = map(train(setting, {}).init, keys)
        return place(mesh, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), "seeds")

    @functools.partial(jax.jit, donate_argnums=2, out_shardings=mesh and (of_runs, whole))
    def advance(setting: Any, traced: Any, states: State, keys: Any, first: int) -> Any:
        def program(shared: Any, *runs: Any) -> Any:
            setting, first = shared
            one = lambda traced, state, key: train(setting, traced).advance(state, key, first)
            return jax.vmap(one)(*runs) if at_once else jax.lax.map(lambda run: one(*run), runs)

        return each(program)((setting, first), traced, states, keys)

    @functools.partial(jax.jit, out_shardings=whole)
    def evaluate(setting: Any, traced: Any, states: State, keys: Any) -> Any:
        def program(setting: Any, *runs: Any) -> Any:
            # One after another: the images of all together would not fit a cache.
            return jax.lax.map(lambda run: train(setting, run[0]).evaluate(*run[1:]), runs)

        return each(program)(setting, traced, states, keys)

    @jax.jit
    def draw(setting: Any, keys: Any, first: int) -> Any:
        return jax.vmap(lambda key: train(setting, {}).draw(key, first))(keys)

    return SideBySide(init, advance, evaluate, draw)


def first_nonfinite(log: Mapping[str, Any]) -> tuple[int, int, str] | None:
    """Returns (step in the chunk, seed index, name) of the earliest value that is not finite, if any."""
    worst: tuple[int, int, str] | None = None
    for name, values in log.items():  # (seeds, steps)
        bad = ~jnp.isfinite(values)
        if bool(bad.any()):
            step = int(jnp.argmax(bad.any(0)))
            seed = int(jnp.argmax(bad[:, step]))
            worst = min(worst or (step, seed, name), (step, seed, name))
    return worst
