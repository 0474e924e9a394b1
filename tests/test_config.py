"""Tests of recipes: shipped ones load, a slip is answered with the nearest name, every field is explained."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from cocot.errors import ConfigError
from cocot.methods import METHODS, CurriculumConfig, Phase, phases
from cocot.methods import base as curriculum
from cocot.modeling import config as model_config
from cocot.modeling.config import InitConfig, ModelConfig
from cocot.training import config
from cocot.training.config import DataConfig, RunConfig, TrainConfig
from cocot.training.recipes import field_names, read_recipe, shipped_recipes
from cocot.training.schedule import num_shared_stages, num_steps, plan, split_batch

SETTINGS = [
    kind
    for module in (config, curriculum, phases, model_config)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and is_dataclass(kind)
    and (kind.__name__.endswith("Config") or kind is Phase)
    and kind.__module__ == module.__name__
]
MINIMAL = "model: {init: {architecture: llama}}\n"


def recipe(folder: Path, text: str = MINIMAL) -> str:
    """A recipe file with that text."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
@pytest.mark.parametrize("method", METHODS)
def test_every_shipped_recipe_plans_every_method(name: str, method: str) -> None:
    """A recipe that we ship loads, and plans each method at the same number of optimizer steps."""
    shipped = read_recipe(name)
    chosen = read_recipe(name, ["--curriculum.method", method])
    assert chosen.curriculum.method == method
    assert plan(chosen)[-1].advance_at is None
    epochs, others = ([item.stage.num_epochs for item in plan(config)] for config in (chosen, shipped))
    assert sum(epochs) == sum(others)
    if not chosen.data.train:  # the Hub's data sets are not read here
        assert num_steps(chosen) == sum(epochs) * (chosen.data.num_train // chosen.train.batch_size) > 0
    assert all(item.stage.num_epochs > 0 for item in plan(chosen))


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_is_explained(kind: type) -> None:
    """The docstring of each dataclass explains each of its fields, in order, and nothing else."""
    assert "Attributes:" in (kind.__doc__ or "")
    section = (kind.__doc__ or "").split("Attributes:")[1]
    indent = re.search(r"\n( +)\S", section)
    assert indent is not None
    explained = re.findall(rf"^{indent[1]}(\w+): \S", section, flags=re.MULTILINE)
    assert explained == [field.name for field in fields(kind)]


def test_the_settings_are_found() -> None:
    """The check above sees the dataclasses of a recipe."""
    assert {InitConfig, ModelConfig, Phase, DataConfig, TrainConfig, RunConfig, CurriculumConfig} <= set(SETTINGS)


def test_a_minimal_recipe_gets_the_defaults(tmp_path: Path) -> None:
    """What a recipe leaves out is as the dataclasses say."""
    assert read_recipe(recipe(tmp_path)) == RunConfig(ModelConfig(init=InitConfig(architecture="llama")))


def test_overrides_reach_every_floor_of_a_recipe(tmp_path: Path) -> None:
    """`--dotted.name value` sets numbers, words, lists, tables, nothing, and parts that the recipe left out."""
    overrides = ["--seed", "7", "--train.learning_rate", "1e-4", "--curriculum.advance_at", "0.9"]
    overrides += ["--train.stage_learning_rate", "{final: 0.5}", "--train.report_to", "[tensorboard]"]
    overrides += ["--data.generate", "{mode: balanced, layers: [1, 2]}"]
    overrides += ["--curriculum.phases", "[{name: small, stages: {stage_1: 2}, epochs: 3}]"]
    overrides += ["--model.init.layers=4", "--train.bf16", "false", "--curriculum.first_epochs", "null"]
    chosen = read_recipe(recipe(tmp_path, MINIMAL + "curriculum: {first_epochs: 9}\n"), overrides)
    assert chosen.seed == 7
    assert chosen.train == TrainConfig(
        learning_rate=1e-4, stage_learning_rate={"final": 0.5}, report_to=["tensorboard"], bf16=False
    )
    small = Phase("small", {"stage_1": 2.0}, epochs=3)
    assert chosen.curriculum == CurriculumConfig(advance_at=0.9, phases=[small])
    assert chosen.data == DataConfig(generate={"mode": "balanced", "layers": [1, 2]})
    assert chosen.model.init == InitConfig(architecture="llama", layers=4)


def test_field_names_are_those_that_overrides_take() -> None:
    """The names that suggestions are drawn from reach into every part."""
    names = set(field_names())
    expected = {"seed", "model.path", "model.init.width", "curriculum.phases", "curriculum.method", "train.device"}
    assert expected <= names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--train.learning_rat", "1"], "did you mean 'train.learning_rate'"),
        (["--curriculum.metod=cot"], "did you mean 'curriculum.method'"),
        (["--model.init.widht", "8"], "did you mean 'model.init.width'"),
        (["--sede", "8"], "did you mean 'seed'"),
        (["--train.batch_size", "many"], "train.batch_size"),
        (["--train.batch_size", "1.5"], "train.batch_size"),
        (["--train.optimizer", "sgd"], "train.optimizer"),
        (["--curriculum.pad_thoughts", "maybe"], "curriculum.pad_thoughts"),
        (["--curriculum.method", "cots"], "unknown method 'cots'"),
        (["--model.path", "gpt2"], "exactly one of model.path"),
        (["--train.device_batch_size", "0"], "train.device_batch_size is 0; it must be at least 1"),
        (["--train.save_steps", "0"], "train.save_steps is 0"),
        (["--data.num_valid", "0"], "data.num_valid is 0"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line_with_the_nearest_name(
    tmp_path: Path, override: list[str], message: str
) -> None:
    """An unknown or impossible override is a ConfigError in one line that names what was meant."""
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe(tmp_path), override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "train: {learning_rat: 1}\n", "did you mean 'train.learning_rate'"),
        (MINIMAL + "trian: {learning_rate: 1}\n", "trian"),
        ("model: {init: {widht: 8}}\n", "did you mean 'model.init.width'"),
        (MINIMAL + "seed: one\n", "seed"),
        ("seed: 1\n", "model"),
        ("", "mine.yaml"),
        ("- 1\n- 2\n", "mine.yaml"),
        ("model: {init: [\n", "mine.yaml"),
        ("just words\n", "mine.yaml"),
    ],
)
def test_a_slip_in_a_recipe_file_is_one_line_with_the_nearest_name(tmp_path: Path, text: str, message: str) -> None:
    """A recipe with an unknown key, a wrong type, a part missing or no YAML at all is a ConfigError in one line."""
    with pytest.raises(ConfigError) as caught:
        read_recipe(recipe(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    """A recipe that is neither shipped nor a file is refused, with the names of the shipped ones."""
    with pytest.raises(ConfigError, match=r"no recipe 'dmeo'.*demo"):
        read_recipe("dmeo")


def with_phase(data: str | None = None, **settings: object) -> RunConfig:
    """A run with one phase of such settings."""
    phase = Phase(**{"name": "small", "stages": {"stage_0": 1.0}, **settings})  # type: ignore[arg-type]
    curriculum = CurriculumConfig(max_stage=2, phases=[phase])
    return RunConfig(ModelConfig(init=InitConfig()), data=DataConfig(train=data), curriculum=curriculum)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(), "exactly one"),
        (lambda: ModelConfig(path="gpt2", init=InitConfig()), "exactly one"),
        (lambda: DataConfig(fresh=True, train="x.jsonl"), "data.fresh"),
        (lambda: with_phase(data="x.jsonl", generate={"layers": 1}), "phase small .* data.train"),
        (lambda: with_phase(data="x.jsonl", earlier=0.5), "phase small .* data.train"),
        (lambda: with_phase(stages={"stage_3": 1.0}), r"curriculum.phases\[0\].stages names 'stage_3'; choose one of"),
        (lambda: with_phase(stages={"stage_0": 0.0}), "names no stage"),
        (lambda: with_phase(stages={"stage_0": -1.0}), "curriculum.phases.stages is -1.0"),
        (lambda: with_phase(name="final"), "another phase or stage is called"),
        (lambda: with_phase(name="../x"), "letters, digits and underscores"),
        (lambda: with_phase(method="cot"), "does not think as 'coconut' does"),
        (lambda: with_phase(method="frontie"), "frontier"),
        (lambda: with_phase(generate={"seed": 1}), "generates with seed of its own"),
        (lambda: CurriculumConfig(epochs_per_stage=0, phases=[Phase("a", {"stage_0": 1.0})]), "no stage with epochs"),
        (lambda: TrainConfig(batch_size=0), "train.batch_size is 0"),
        (lambda: TrainConfig(eval_batch_size=-1), "train.eval_batch_size is -1"),
        (lambda: TrainConfig(logging_steps=0), "train.logging_steps is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make: object, message: str) -> None:
    """A contradiction is a ConfigError when the settings are made, not an epoch later."""
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_stage_that_no_method_has_cannot_be_given_a_rate() -> None:
    """`train.stage_learning_rate` may name any stage of the curriculum, whatever the method, and no other."""
    init = ModelConfig(init=InitConfig())
    rates = {"stage_2": 0.5, "final": 0.1}
    curriculum_config = CurriculumConfig("cot", max_stage=2)
    fine = RunConfig(init, curriculum=curriculum_config, train=TrainConfig(stage_learning_rate=rates))
    assert [item.learning_rate_factor for item in plan(fine)] == [1.0]
    wrong = RunConfig(init, curriculum=curriculum_config, train=TrainConfig(stage_learning_rate={"stage_3": 1.0}))
    with pytest.raises(ConfigError, match=r"\['stage_3'\]; the stages of this run are \['stage_0'\]"):
        plan(wrong)


SHARED = {
    ("coconut", "pause_as_thought"): 2,
    ("coconut", "coconut"): 2,
    ("coconut", "frontier"): 2,
    ("coconut", "sim_cot"): 2,
    ("coconut_no_curriculum", "codi"): 0,
    ("no_thought", "icot"): 2,
    ("cot", "no_thought"): 1,  # stage 0 of cot lasts as long as all of the other's
    ("coconut", "no_thought"): 0,  # markers in the prompt
    ("coconut", "coconut_no_curriculum"): 0,
    ("no_cot", "cot"): 0,
    ("no_cot", "no_cot"): 0,
}


@pytest.mark.parametrize("methods", SHARED)
def test_stages_in_words_are_shared(methods: tuple[str, str]) -> None:
    """Methods share phases in words and stage 0 where they write the same texts by the same settings, and no others."""

    def config(method: str, **settings: object) -> RunConfig:
        small = Phase("small", {"stage_0": 1.0})
        how = CurriculumConfig(method, max_stage=2, stage_mix=0.5, phases=[small])
        return replace(RunConfig(ModelConfig(init=InitConfig()), curriculum=how), **settings)  # type: ignore[arg-type]

    first, second = methods
    assert num_shared_stages(config(first), config(second)) == SHARED[methods]
    assert num_shared_stages(config(second), config(first)) == SHARED[methods]
    assert num_shared_stages(config(first), config(second, seed=1)) == 0
    assert num_shared_stages(config(first), config(second, train=TrainConfig(learning_rate=1.0))) == 0


@pytest.mark.parametrize(
    ("size", "most", "world", "per_device", "accumulation"),
    [(128, 32, 1, 32, 4), (128, 48, 1, 32, 4), (12, 5, 2, 3, 2), (8, 100, 1, 8, 1), (7, 6, 1, 1, 7)],
)
def test_a_batch_is_reached_whole(size: int, most: int, world: int, per_device: int, accumulation: int) -> None:
    """The recipe's batch is shared out without rest, in the largest device batches that do it."""
    batches = split_batch(size, most, world)
    assert (batches.per_device, batches.accumulation) == (per_device, accumulation)
    assert batches.per_device * batches.accumulation * batches.world_size == size


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    """A batch that three processes cannot share evenly is an error, not another batch."""
    with pytest.raises(ConfigError, match="batch_size 8 cannot be shared by 3 processes"):
        split_batch(8, 8, 3)


def test_a_warm_up_of_before_is_read_as_a_phase(tmp_path: Path) -> None:
    """Recipes and runs of before phases have `data.warmup`; null was no warm-up."""
    old = MINIMAL + "data: {warmup: {generate: {width: 1}, epochs: 2, advance_at: null}}\n"
    old += "train: {stage_learning_rate: {warmup: 0.5, final: 0.1}}\n"
    chosen = read_recipe(recipe(tmp_path, old))
    assert chosen.curriculum.phases == [
        Phase("warmup", {"stage_0": 1.0}, epochs=2, generate={"width": 1}, learning_rate=0.5)
    ]
    assert chosen.train.stage_learning_rate == {"final": 0.1}
    none = MINIMAL + "data: {warmup: null}\n"
    assert not read_recipe(recipe(tmp_path, none)).curriculum.phases
