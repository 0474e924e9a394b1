"""What a model knows about its thoughts: kept in its config under `thoughts`, and so saved in `config.json`.

Every reader and writer of that entry goes through here, but for the file that leaves cocot (`custom_generate.py`).
"""

from __future__ import annotations

from typing import Any

from cocot.data.layout import ThoughtSettings
from cocot.errors import ConfigError, ModelError
from cocot.settings.typed import build
from cocot.version import __version__

_NAME = "thoughts"
_VERSION = "cocot_version"
"""Where `config.json` names the version of cocot that gave the model its thoughts, trained or exported it."""


def has_thought_settings(model: Any) -> bool:
    """Whether a model was given thoughts, in this process or before it was saved."""
    return bool(getattr(model.config, _NAME, None))


def thought_settings(model: Any) -> ThoughtSettings:
    """The thought settings that a model carries in its config.

    Raises:
        ModelError: the model has none, since `give_thoughts` was never called on it, or they cannot be used.
    """
    if not has_thought_settings(model):
        raise ModelError("this model has no thought settings; call cocot.give_thoughts(model, tokenizer) first.")
    try:
        return build(ThoughtSettings, getattr(model.config, _NAME), "thoughts")
    except ConfigError as error:
        raise ModelError(f"the model's config.json is corrupted, or of a newer version of cocot: {error}") from error


def set_thought_settings(model: Any, settings: ThoughtSettings) -> None:
    """Put the settings where `save_pretrained` writes them down, with the version of cocot that did so."""
    setattr(model.config, _NAME, settings.to_json())
    setattr(model.config, _VERSION, __version__)


def latent_id(model: Any) -> int:
    """The token id of `<|latent|>`, without a check of the other settings: every forward pass asks."""
    return int(getattr(model.config, _NAME)["latent_id"])


def iterations(model: Any) -> int | None:
    """How often the model refines all its thoughts together, without a check of the other settings."""
    found: int | None = getattr(model.config, _NAME).get("iterations")
    return found


def mixes_words(model: Any) -> bool:
    """Whether the model's thoughts are mixtures of word embeddings, without a check of the other settings."""
    return bool(getattr(model.config, _NAME).get("mixes_words"))


def stop_id(model: Any) -> int | None:
    """The token id that ends the model's thoughts, without a check of the other settings; None for most models."""
    found: int | None = getattr(model.config, _NAME).get("stop_id")
    return found


def settings_in(config: dict[str, Any]) -> dict[str, Any]:
    """What the content of a `config.json` says; empty for a model that was not trained here."""
    return dict(config.get(_NAME) or {})
